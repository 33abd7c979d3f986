//! What is promised about images besides how long one pull takes: memory, what an image that is here costs, what
//! many who want the same get, what a broken connection and a removal cost. Writes down what it found beside
//! what is wanted; `cargo xtask bench images` runs it and makes a table of it.
//!
//! `images OUTPUT.json ROUNDS [WHAT…]`

mod always;
mod crowd;
mod cut;
mod disk;
mod memory;
mod removal;
mod there;
mod world;

use std::fs;

use anyhow::{Context, Result, bail};
use support::{Value, json};

use world::World;

/// One promise: at most so much, and so much it was.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) most: f64,
    pub(crate) measured: f64,
    /// Of how many, and beside what.
    pub(crate) of: String,
}

type Measure = fn(&World) -> Result<Vec<Row>>;

const ALL: [(&str, Measure); 7] = [
    ("memory", memory::measure),
    ("there", there::measure),
    ("always", always::measure),
    ("disk", disk::measure),
    ("crowd", crowd::measure),
    ("cut", cut::measure),
    ("removal", removal::measure),
];

fn main() -> Result<()> {
    // Cargo adds a word of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [output, rounds, ref wanted @ ..] = words[..] else {
        bail!("usage: images OUTPUT.json ROUNDS [WHAT…]; `cargo xtask bench images` does the rest");
    };
    let world = World::new(rounds.parse().context("read how many rounds")?);
    let mut rows = Vec::new();
    for (name, measure) in ALL.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        eprintln!("{name}");
        let found = measure(&world).with_context(|| format!("measure {name}"))?;
        for Row { what, unit, most, measured, of } in &found {
            eprintln!("  {what}: {measured:.3} {unit}, of at most {most} ({of})");
        }
        rows.extend(found);
    }
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    fs::write(output, Value::from(rows).to_string()).with_context(|| format!("write {output}"))
}

impl Row {
    fn json(&self) -> Value {
        let Self { what, unit, most, measured, of } = self;
        json!({ "what": what, "unit": unit, "most": most, "measured": measured, "of": of })
    }
}
