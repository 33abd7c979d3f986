//! Who waits, by name: the one label that is not from a closed set. Its values are names that an operator
//! gave, and not many of them; the rest is `other`.

use std::collections::HashMap;
use std::sync::PoisonError;

use run::PrincipalName;

use super::Telemetry;

/// More principals than this are not told apart: each is a line on every page.
const NAMED_MAX: usize = 100;

impl Telemetry {
    /// `known` are the principals of the keys.
    pub fn set_queued(&self, known: &[PrincipalName], queued: &[(PrincipalName, usize)]) {
        let numbers = by_name(known, queued);
        let mut shown = self.principals_shown.lock().unwrap_or_else(PoisonError::into_inner);
        // A name that is none of them any more would show for good what waited when it was last one.
        shown.retain(|name| {
            let stays = numbers.contains_key(name.as_str());
            if !stays {
                let _ = self.runs_queued.remove_label_values(&[name]);
            }
            stays
        });
        for (name, number) in numbers {
            self.runs_queued.with_label_values(&[name]).set(number as i64);
            if !shown.contains(name) {
                shown.insert(name.to_owned());
            }
        }
    }
}

/// Every name that is shown, with how many wait, also where that is none.
fn by_name<'a>(known: &'a [PrincipalName], queued: &[(PrincipalName, usize)]) -> HashMap<&'a str, usize> {
    let named = known.iter().take(NAMED_MAX).map(PrincipalName::as_str);
    let mut numbers: HashMap<&str, usize> = named.chain(["other"]).map(|name| (name, 0)).collect();
    for (name, number) in queued {
        let shown = if numbers.contains_key(name.as_str()) { name.as_str() } else { "other" };
        if let Some(sum) = numbers.get_mut(shown) {
            *sum += number;
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_that_is_gone_shows_nothing_any_more() {
        let telemetry = Telemetry::new(1, 1, std::sync::Arc::new(crate::keys::Ledger::in_memory()));
        let name = |text: &str| PrincipalName::parse(text).unwrap();
        let lines = || {
            let page = String::from_utf8(telemetry.page().unwrap()).unwrap();
            let lines = page.lines().filter(|line| line.starts_with("sandglass_runs_queued{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let line =
            |name: &str, number: usize| format!("sandglass_runs_queued{{principal=\"{name}\"}} {number}");
        let queued = [(name("alice"), 3), (name("bob"), 1)];
        telemetry.set_queued(&[name("alice"), name("bob")], &queued);
        assert_eq!(lines(), [line("alice", 3), line("bob", 1), line("other", 0)]);
        telemetry.set_queued(&[name("bob")], &queued);
        assert_eq!(lines(), [line("bob", 1), line("other", 3)]);
        telemetry.set_queued(&[name("alice"), name("bob")], &[]);
        assert_eq!(lines(), [line("alice", 0), line("bob", 0), line("other", 0)]);
    }

    #[test]
    fn whoever_has_no_line_of_its_own_is_among_the_others() {
        let name = |text: &str| PrincipalName::parse(text).unwrap();
        let known: Vec<_> = (0..NAMED_MAX + 1).map(|number| name(&format!("p{number}"))).collect();
        let queued = [(name("p0"), 3), (name("p100"), 2), (name("revoked"), 5)];
        let shown = by_name(&known, &queued);
        assert_eq!(shown.len(), NAMED_MAX + 1);
        assert_eq!((shown["p0"], shown["p1"], shown["other"]), (3, 0, 7));
    }
}
