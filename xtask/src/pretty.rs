//! JSON for people, in the order in which it was sent.

/// Breaks and indents valid JSON; what is empty stays on one line.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    let mut in_string = false;
    let mut escaped = false;
    let mut letters = text.chars().filter(|letter| !letter.is_control()).peekable();
    while let Some(letter) = letters.next() {
        if in_string {
            out.push(letter);
            in_string = escaped || letter != '"';
            escaped = !escaped && letter == '\\';
            continue;
        }
        match letter {
            '"' => {
                in_string = true;
                out.push(letter);
            }
            '{' | '[' if letters.peek().is_some_and(|next| matches!(next, '}' | ']')) => {
                out.push(letter);
                out.extend(letters.next());
            }
            '{' | '[' => {
                depth += 1;
                out.push(letter);
                break_line(&mut out, depth);
            }
            '}' | ']' => {
                depth -= 1;
                break_line(&mut out, depth);
                out.push(letter);
            }
            ',' => {
                out.push(letter);
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            ' ' => {}
            _ => out.push(letter),
        }
    }
    out
}

fn break_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.push_str(&"  ".repeat(depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept_and_strings_are_left_alone() {
        let text = r#"{"z":1,"a":{"b":"{,:\" \\"},"c":[],"d":[1,2]}"#;
        let expected = "{\n  \"z\": 1,\n  \"a\": {\n    \"b\": \"{,:\\\" \\\\\"\n  },\n  \"c\": [],\n  \"d\": [\n    1,\n    2\n  ]\n}";
        assert_eq!(json(text), expected);
    }
}
