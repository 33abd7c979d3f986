//! Reads a body as one JSON value, more strictly than most: what two readers could understand
//! differently (duplicate keys, a byte order mark, anything after the value) is not JSON here.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::{BadValue, NOT_JSON, Problem};

/// The deepest that arrays and objects may be nested.
pub const MAX_DEPTH: usize = 32;

/// The most values that one body may hold; each costs memory beyond its own bytes.
pub const MAX_VALUES: usize = 65_536;

/// The body as a value, or the problem that says why it is none.
pub fn parse(body: &[u8]) -> Result<Value, Problem> {
    if body.starts_with(b"\xEF\xBB\xBF") {
        return Err(NOT_JSON.detail("the body begins with a byte order mark; leave it out"));
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(NOT_JSON.detail("the body is empty; send a JSON object"));
    }
    let left = Cell::new(MAX_VALUES);
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Strict { depth: 0, left: &left }.deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(error) if left.get() == 0 => Err(Problem::invalid(vec![BadValue::at("", error.to_string())])),
        // Too large for any number type is still a number: the value is bad, not the JSON.
        Err(error) if error.to_string().starts_with("number out of range") => {
            Err(Problem::invalid(vec![BadValue::at("", error.to_string())]))
        }
        Err(error) => Err(NOT_JSON.detail(error.to_string())),
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.left.get() {
            0 => return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values"))),
            left => self.left.set(left - 1),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(value) = items.next_element_seed(inner)? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            let value = entries.next_value_seed(inner)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(body: &[u8]) -> u16 {
        parse(body).map_or_else(|problem| problem.kind.status, |_| 200)
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_not_json() {
        let deep = |levels: usize| [vec![b'['; levels], vec![b']'; levels]].concat();
        for (body, expected) in [
            (b"{}".to_vec(), 200),
            (b" [1, -2, 3.5, \"x\", null, true] \n".to_vec(), 200),
            (b"".to_vec(), 400),
            (b" \n".to_vec(), 400),
            (b"{".to_vec(), 400),
            (b"{} {}".to_vec(), 400),
            (b"{},".to_vec(), 400),
            (b"\xEF\xBB\xBF{}".to_vec(), 400),
            (b"\"\xff\"".to_vec(), 400),
            (b"\"\\ud800\"".to_vec(), 400),
            (b"NaN".to_vec(), 400),
            (b"{'a': 1}".to_vec(), 400),
            (br#"{"a": 1, "a": 1}"#.to_vec(), 400),
            (br#"{"a": [{"b": {"c": 1, "\u0063": 2}}]}"#.to_vec(), 400),
            (deep(MAX_DEPTH), 200),
            (deep(MAX_DEPTH + 1), 400),
            (deep(1_000_000), 400),
            (b"1e999".to_vec(), 422),
            (br#"{"limits": {"memory_bytes": 99999999999999999999}}"#.to_vec(), 200),
            (format!("[{}0]", "0,".repeat(MAX_VALUES)).into_bytes(), 422),
        ] {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_eq!(status(&body), expected, "{shown}");
        }
    }

    #[test]
    fn values_arrive_as_they_were_written() {
        let value = parse(br#"{"b": [18446744073709551615, "\u00e9"], "a": null}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": null, "b": [u64::MAX, "é"]}));
    }
}
