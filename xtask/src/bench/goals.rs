//! What pulls are to cost at most, in terms of L and of those who were measured in the same rounds.

use super::report::Image;
use super::tools::OURS;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Goal {
    pub(super) what: String,
    pub(super) most: f64,
    pub(super) measured: f64,
}

/// How much of each peer's time an image may take.
const PEERS: [(&str, &str, f64); 6] = [
    ("gcc", "podman", 0.25),
    ("gcc", "containerd", 0.25),
    ("gcc", "skopeo + umoci", 0.27),
    ("small", "containerd", 0.35),
    ("many", "containerd", 0.4),
    ("huge", "containerd", 0.5),
];
/// How much of the time of whoever was quickest.
const BEST_PEER: [(&str, f64); 3] = [("small", 0.35), ("many", 0.4), ("huge", 0.5)];
const USABLE_FLOORS: f64 = 1.1;
const DURABLE_FLOORS: f64 = 1.45;
const HUGE_MIB: f64 = 64.0;

/// The goals for one image, as far as there is something to compare with.
pub(super) fn of(image: &Image) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |what: String, most: f64, measured: Option<f64>| {
        goals.extend(measured.map(|measured| Goal { what, most, measured }));
    };
    let name = image.image;
    if name == "gcc" {
        let floors = |seconds: Option<f64>| Some(seconds? / image.floor());
        add("gcc, until runs can begin: × L".into(), USABLE_FLOORS, floors(image.usable()));
        add("gcc, with the durable commit: × L".into(), DURABLE_FLOORS, floors(image.ours()));
    }
    // The others sync nothing, and neither do those wait for that who want to run something.
    let ratio = |theirs: Option<f64>| image.usable().zip(theirs).map(|(ours, theirs)| ours / theirs);
    for (_, peer, most) in PEERS.iter().filter(|(image, ..)| *image == name) {
        add(format!("{name}: × {peer}"), *most, ratio(image.took(peer)));
    }
    if let Some((_, most)) = BEST_PEER.iter().find(|(image, _)| *image == name)
        && let Some((peer, took)) = image.best_peer().filter(|(peer, _)| *peer != "containerd")
    {
        add(format!("{name}: × the quickest other, {peer}"), *most, ratio(Some(took)));
    }
    if name == "huge" {
        add("huge: memory of the whole process tree, MiB".into(), HUGE_MIB, image.memory_mib(OURS));
    }
    goals
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::Measured;
    use crate::bench::report::Tool;

    #[test]
    fn goals_are_asked_of_those_who_were_there() {
        let took = |seconds: f64| Tool {
            pulls: vec![Measured { seconds, usable_seconds: Some(seconds / 2.0) }],
            memory_bytes: 70 << 20,
        };
        let image = |name, tools| Image { image: name, floors_s: vec![1.0, 2.0, 9.0], tools };
        let gcc = of(&image("gcc", BTreeMap::from([(OURS, took(3.0)), ("podman", took(10.0))])));
        let measured: Vec<_> = gcc.iter().map(|goal| goal.measured).collect();
        assert_eq!(measured, [0.75, 1.5, 0.15]);
        let huge = of(&image("huge", BTreeMap::from([(OURS, took(3.0))])));
        assert_eq!(huge.len(), 1);
        assert!(huge[0].measured > huge[0].most);
        for (podman, ratios) in [(12.0, &[0.375][..]), (2.0, &[0.375, 0.75])] {
            let peers = [(OURS, took(3.0)), ("podman", took(podman)), ("containerd", took(4.0))];
            let many = of(&image("many", BTreeMap::from(peers)));
            assert_eq!(many.iter().map(|goal| goal.measured).collect::<Vec<_>>(), ratios);
        }
    }
}
