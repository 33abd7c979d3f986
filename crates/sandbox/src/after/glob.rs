//! Patterns of file names: `*` and `?` within a name, `[a-z]`, and `**` for any number of folders.

/// One part of a pattern between slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A name as it is.
    Name(String),
    /// A name with wildcards.
    Like(String),
    /// Any number of folders, none included.
    Deep,
}

/// The parts of a pattern, from the root on. `.` is left out, `..` goes up as far as the root, as in a path
/// that leads through no link. The working directory is a name, whatever characters it has.
pub(super) fn parse(workdir: &str, pattern: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = if pattern.starts_with('/') { Vec::new() } else { folders(workdir) };
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            "**" if parts.last() == Some(&Part::Deep) => {}
            "**" => parts.push(Part::Deep),
            part if part.contains(['*', '?', '[']) => parts.push(Part::Like(part.into())),
            part => parts.push(Part::Name(part.into())),
        }
    }
    parts
}

/// The parts of a path that is no pattern.
pub(super) fn folders(path: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(Part::Name(part.into())),
        }
    }
    parts
}

/// Whether the name is like the pattern. As in a shell, what begins with a dot wants it said. Takes at most
/// as many steps as the two lengths multiplied, where there are no brackets; else that often the pattern's.
pub(super) fn is_like(name: &[u8], pattern: &str) -> bool {
    let pattern = pattern.as_bytes();
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut at, mut in_pattern) = (0, 0);
    // Where to go on when what follows the last `*` turns out not to fit.
    let mut star: Option<(usize, usize)> = None;
    while at < name.len() {
        if pattern.get(in_pattern) == Some(&b'*') {
            star = Some((at, in_pattern + 1));
            in_pattern += 1;
        } else if let Some(len) = one(name[at], &pattern[in_pattern..]) {
            (at, in_pattern) = (at + 1, in_pattern + len);
        } else if let Some((from, after)) = star {
            star = Some((from + 1, after));
            (at, in_pattern) = (from + 1, after);
        } else {
            return false;
        }
    }
    pattern[in_pattern..].iter().all(|byte| *byte == b'*')
}

/// How much of the pattern takes this one byte; `None` where it doesn't.
fn one(byte: u8, pattern: &[u8]) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => match set(byte, rest) {
            Some((true, len)) => Some(1 + len),
            Some((false, _)) => None,
            // A bracket that nobody closes is only a bracket.
            None => (byte == b'[').then_some(1),
        },
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

/// Whether the byte is in the set, and how long the set is with its closing bracket.
fn set(byte: u8, pattern: &[u8]) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let begin = usize::from(negated);
    // A closing bracket that comes first is meant as one.
    let end = begin + 1 + pattern.get(begin + 1..)?.iter().position(|byte| *byte == b']')?;
    let mut members = &pattern[begin..end];
    let mut found = false;
    while let Some(first) = members.first() {
        if let [low, b'-', high, ..] = members {
            found |= (*low..=*high).contains(&byte);
            members = &members[3..];
        } else {
            found |= *first == byte;
            members = &members[1..];
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_like_patterns_as_in_a_shell() {
        for (pattern, name, like) in [
            ("*.png", "a.png", true),
            ("*.png", ".png", false),
            (".*", ".png", true),
            ("*", "", true),
            ("a*b*c", "a_b_b_c", true),
            ("a*b*c", "a_b_b_d", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[ab", "[ab", true),
            ("[ab", "aab", false),
            ("**", "anything", true),
            ("x*", "x", true),
        ] {
            assert_eq!(is_like(name.as_bytes(), pattern), like, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let (name, pattern) = ("a".repeat(255), format!("{}b", "a*".repeat(120)));
        assert!(!is_like(name.as_bytes(), &pattern));
    }

    #[test]
    fn a_pattern_never_goes_above_the_root() {
        let names = |names: &[&str]| -> Vec<Part> {
            names.iter().map(|name| Part::Name((*name).to_owned())).collect()
        };
        assert_eq!(parse("/w", "/a/./b//c"), names(&["a", "b", "c"]));
        assert_eq!(parse("/w", "/../../etc/../x"), names(&["x"]));
        assert_eq!(parse("/w[1]", "a"), names(&["w[1]", "a"]));
        assert_eq!(parse("/w/v", "../a"), names(&["w", "a"]));
        assert_eq!(parse("", "**/**/a*"), [Part::Deep, Part::Like("a*".into())]);
    }
}
