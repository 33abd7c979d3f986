//! Starts the launcher and refuses to go on with walls missing that nobody has agreed to do without.

use std::sync::Arc;

use anyhow::{Context, ensure};
use sandbox::client::{Launcher, Options};
use sandbox::protocol::{Hello, Wall, WallState};

use crate::config::Config;

/// Starts the launcher. Must be called before this process has a second thread.
pub fn start_launcher(config: &Config) -> anyhow::Result<(Arc<Launcher>, Hello)> {
    let cgroup_parent = Some(&config.cgroup_parent).filter(|path| !path.is_empty()).map(Into::into);
    let options = Options {
        program: config.launcher.clone(),
        layers: config.layers_dir(),
        state: config.data_dir.join("state"),
        cgroup_parent,
        host_image: config.allow_host_image,
        server_pid: std::process::id() as i32,
    };
    let (launcher, hello) = Launcher::start(&options).context("start the launcher")?;
    Ok((Arc::new(launcher), hello))
}

/// The limits that need a control group.
const LIMITS: [&str; 4] = ["memory_bytes", "processes", "cpus", "cpu_time_ms"];

/// Every wall that is down and every limit that can't be enforced must be named in `allow_degraded`.
pub fn check(hello: &Hello, allow_degraded: &[String]) -> anyhow::Result<()> {
    let known = hello.walls.iter().map(|wall| wall.name.as_str()).chain(LIMITS);
    let known: Vec<_> = known.collect();
    for word in allow_degraded {
        ensure!(
            known.contains(&word.as_str()),
            "allow_degraded names {word}, which is no wall and no limit; there are {}",
            known.join(", ")
        );
    }
    let missing = missing(hello);
    let refused: Vec<_> = missing.iter().filter(|(name, _)| !allow_degraded.contains(name)).collect();
    let reasons: Vec<_> = refused.iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
    let names: Vec<_> = missing.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        refused.is_empty(),
        "this machine can't keep every promise of a sandbox:{}\n`sandglass doctor` says how to get what is missing; \
         to do without it, start with --allow-degraded={}",
        reasons.concat(),
        names.join(",")
    );
    Ok(())
}

/// Walls that stand, but not as high as elsewhere.
pub fn weaker(hello: &Hello) -> impl Iterator<Item = &Wall> {
    hello.walls.iter().filter(|wall| wall.state == WallState::Weaker)
}

fn missing(hello: &Hello) -> Vec<(String, String)> {
    let down = hello.walls.iter().filter(|wall| wall.state == WallState::Down);
    let walls = down.map(|wall| (wall.name.clone(), wall.detail.clone()));
    let limits =
        hello.not_enforced.iter().map(|name| (name.clone(), "the limit can't be enforced".to_owned()));
    walls.chain(limits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(state: WallState, not_enforced: &[&str]) -> Hello {
        let wall = |name: &str, state| Wall { name: name.into(), state, detail: "no controller".into() };
        Hello {
            kernel: "6.12".into(),
            walls: vec![
                wall("seccomp", WallState::Up),
                wall("landlock", WallState::Weaker),
                wall("cgroup_cpu", state),
            ],
            not_enforced: not_enforced.iter().map(|name| (*name).to_owned()).collect(),
            id_width: 65_536,
            max_runs: 100,
            cgroup: "v2".into(),
            host_image: false,
            orphans: 0,
        }
    }

    #[test]
    fn what_is_missing_must_be_agreed_to_by_name() {
        let agreed = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(check(&hello(WallState::Up, &[]), &[]).is_ok());
        assert!(check(&hello(WallState::Weaker, &[]), &[]).is_ok());
        let without = hello(WallState::Down, &["cpus"]);
        let error = check(&without, &agreed(&["cpus"])).unwrap_err().to_string();
        assert!(error.contains("cgroup_cpu: no controller"), "{error}");
        assert!(error.contains("--allow-degraded=cgroup_cpu,cpus"), "{error}");
        assert!(check(&without, &agreed(&["cpus", "cgroup_cpu"])).is_ok());
        let error = check(&hello(WallState::Up, &[]), &agreed(&["cgroups"])).unwrap_err().to_string();
        assert!(error.contains("cgroups, which is no wall"), "{error}");
    }
}
