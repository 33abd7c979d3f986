//! Who waits, by name: the one label that is not from a closed set. Its values are names that an operator
//! gave, and not many of them; the rest is `other`.

use std::collections::HashMap;

use run::PrincipalName;

use super::Telemetry;

/// More principals than this are not told apart: each is a line on every page.
const NAMED_MAX: usize = 100;

impl Telemetry {
    /// `known` are the principals of the keys.
    pub fn set_queued(&self, known: &[PrincipalName], queued: &[(PrincipalName, usize)]) {
        for (name, number) in by_name(known, queued) {
            self.runs_queued.with_label_values(&[name]).set(number as i64);
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
    fn whoever_has_no_line_of_its_own_is_among_the_others() {
        let name = |text: &str| PrincipalName::parse(text).unwrap();
        let known: Vec<_> = (0..NAMED_MAX + 1).map(|number| name(&format!("p{number}"))).collect();
        let queued = [(name("p0"), 3), (name("p100"), 2), (name("revoked"), 5)];
        let shown = by_name(&known, &queued);
        assert_eq!(shown.len(), NAMED_MAX + 1);
        assert_eq!((shown["p0"], shown["p1"], shown["other"]), (3, 0, 7));
    }
}
