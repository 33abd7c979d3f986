//! Takes a JSON object apart field by field and remembers everything that is wrong with it, so that
//! a client hears of all its mistakes at once, each by JSON pointer.

use serde_json::{Map, Value};

use super::problem::BadValue;

/// An object of which some fields have been taken. What is left at the end is unknown.
#[derive(Debug)]
pub struct Fields<'a> {
    at: String,
    map: Map<String, Value>,
    bad: &'a mut Vec<BadValue>,
}

impl<'a> Fields<'a> {
    /// `None` where the value is no object, which is then said in `bad`.
    pub fn open(at: impl Into<String>, value: Value, bad: &'a mut Vec<BadValue>) -> Option<Self> {
        let at = at.into();
        match value {
            Value::Object(map) => Some(Self { at, map, bad }),
            other => {
                bad.push(BadValue::at(at, format!("must be an object, not {}", kind(&other))));
                None
            }
        }
    }

    pub fn pointer(&self, name: &str) -> String {
        child(&self.at, name)
    }

    pub fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        let pointer = self.pointer(name);
        self.bad.push(BadValue::at(pointer, detail));
    }

    /// How much has been found wrong so far.
    pub fn complaints(&self) -> usize {
        self.bad.len()
    }

    /// The same for an object that was taken from this one.
    pub fn open_child(&mut self, name: &str, value: Value) -> Option<Fields<'_>> {
        Fields::open(self.pointer(name), value, self.bad)
    }

    /// The field's value; `null` is absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(name, format!("must be a string, not {}", kind(&other)));
                None
            }
        }
    }

    pub fn boolean(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(value) => Some(value),
            other => {
                self.refuse(name, format!("must be true or false, not {}", kind(&other)));
                None
            }
        }
    }

    /// A whole number; `5.0` is one.
    pub fn integer(&mut self, name: &str) -> Option<i64> {
        let value = self.take(name)?;
        let number = whole(value).as_i64();
        if number.is_none() {
            self.refuse(name, "must be a whole number");
        }
        number
    }

    /// A string out of a closed set.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        let found = choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(choice, _)| format!("`{choice}`")).collect();
            self.refuse(name, format!("must be {}", names.join(" or ")));
        }
        found
    }

    /// A list; each element is handed to `read` with its pointer.
    pub fn list<T>(
        &mut self,
        name: &str,
        max: usize,
        mut read: impl FnMut(String, Value, &mut Vec<BadValue>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let at = self.pointer(name);
        match self.take(name)? {
            Value::Array(items) if items.len() > max => {
                self.refuse(name, format!("has {} entries; at most {max} are allowed", items.len()));
                None
            }
            Value::Array(items) => {
                let read_one = |(i, item)| read(format!("{at}/{i}"), item, self.bad);
                Some(items.into_iter().enumerate().filter_map(read_one).collect())
            }
            other => {
                self.refuse(name, format!("must be an array, not {}", kind(&other)));
                None
            }
        }
    }

    /// An object whose keys the client chooses and whose values are strings; a `null` value is absent.
    pub fn texts(&mut self, name: &str, max: usize) -> Option<Vec<(String, String)>> {
        let at = self.pointer(name);
        let value = self.take(name)?;
        let inner = Fields::open(at, value, self.bad)?;
        if inner.map.len() > max {
            let detail = format!("has {} entries; at most {max} are allowed", inner.map.len());
            inner.bad.push(BadValue::at(inner.at, detail));
            return None;
        }
        let mut entries = Vec::with_capacity(inner.map.len());
        for (key, value) in inner.map {
            match value {
                Value::String(text) => entries.push((key, text)),
                Value::Null => {}
                other => {
                    let detail = format!("must be a string, not {}", kind(&other));
                    inner.bad.push(BadValue::at(child(&inner.at, &key), detail));
                }
            }
        }
        Some(entries)
    }

    /// Refuses every field that nobody took.
    pub fn finish(self) {
        for (name, value) in self.map {
            if !value.is_null() {
                self.bad.push(BadValue::at(child(&self.at, &name), "unknown field"));
            }
        }
    }
}

/// The pointer to a child, with the two characters escaped that RFC 6901 wants escaped.
pub fn child(at: &str, name: &str) -> String {
    let name: String = name.chars().take(200).collect();
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// JSON has one kind of number: `5.0` and `5e0` are whole too.
pub fn whole(value: Value) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value.as_f64() {
        Some(float) if value.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
            Value::from(float as i64)
        }
        _ => value,
    }
}

/// What a value is, in the words of JSON.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
