//! Settings by their names: what each is called in the environment, how a value is read that somebody typed, and how one
//! layer of the configuration lies on another.

use anyhow::{Context, bail};
use toml::{Table, Value};

use super::{Config, SETTINGS};
use crate::image_settings;

/// Every name that can be set, with its default: `slots`, `limits.wall_time_ms`…
pub fn leaves() -> Vec<(String, Value)> {
    let mut leaves = Vec::new();
    for (name, value) in Table::try_from(Config::default()).unwrap_or_default() {
        match value {
            Value::Table(inner) => {
                leaves.extend(inner.into_iter().map(|(leaf, value)| (format!("{name}.{leaf}"), value)));
            }
            value => leaves.push((name, value)),
        }
    }
    leaves
}

/// What a setting is, in words; the limits are told elsewhere.
pub fn words(leaf: &str) -> &'static str {
    let known = SETTINGS.iter().chain(image_settings::SETTINGS).find(|(name, _)| *name == leaf);
    match known {
        Some((_, words)) => words.trim(),
        None if leaf.starts_with("limits.") => "The default of this limit",
        None => "The most of this limit",
    }
}

/// `limits.wall_time_ms` is `SANDGLASS_LIMITS_WALL_TIME_MS` in the environment.
pub fn environment_name(leaf: &str) -> String {
    format!("SANDGLASS_{}", leaf.replace('.', "_").to_uppercase())
}

/// A value as somebody typed it, read as what its default is.
pub fn read_value(leaf: &str, default: &Value, text: &str) -> anyhow::Result<Value> {
    let value = match default {
        Value::Boolean(_) => match text {
            "true" | "1" | "yes" => Value::Boolean(true),
            "false" | "0" | "no" | "" => Value::Boolean(false),
            _ => bail!("{leaf} is {text:?}; it must be true or false"),
        },
        Value::Integer(_) => Value::Integer(
            text.parse().with_context(|| format!("{leaf} is {text:?}; it must be a whole number"))?,
        ),
        Value::Float(_) => {
            Value::Float(text.parse().with_context(|| format!("{leaf} is {text:?}; it must be a number"))?)
        }
        Value::Array(_) => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            Value::Array(words.map(|word| Value::String(word.into())).collect())
        }
        _ => Value::String(text.into()),
    };
    Ok(value)
}

/// Puts one leaf into a table of settings.
pub fn set(table: &mut Table, leaf: &str, value: Value) {
    match leaf.split_once('.') {
        None => {
            table.insert(leaf.into(), value);
        }
        Some((outer, inner)) => {
            let entry = table.entry(outer).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(nested) = entry {
                nested.insert(inner.into(), value);
            }
        }
    }
}

pub(super) fn from_environment(env: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Table> {
    let mut table = Table::new();
    for (leaf, default) in leaves() {
        let name = environment_name(&leaf);
        if let Some(text) = env(&name) {
            set(&mut table, &leaf, read_value(&name, &default, &text)?);
        }
    }
    Ok(table)
}

pub(super) fn merge(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(name, value);
            }
        }
    }
}
