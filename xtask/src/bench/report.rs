//! What was measured, as tables: who took how long for which image, and which of the goals were met.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::tools::OURS;
use super::{Measured, goals};

/// One image and everybody's pulls of it.
#[derive(Debug, Serialize)]
pub(super) struct Image {
    pub(super) image: &'static str,
    /// L, in each round.
    pub(super) floors_s: Vec<f64>,
    pub(super) tools: BTreeMap<&'static str, Tool>,
}

/// What one tool did.
#[derive(Debug, Default, Serialize)]
pub(super) struct Tool {
    pub(super) pulls: Vec<Measured>,
    /// In one more pull, whose time is not measured.
    pub(super) memory_bytes: u64,
}

impl Image {
    fn seconds(&self, tool: &str) -> Vec<f64> {
        self.tools.get(tool).into_iter().flat_map(|tool| &tool.pulls).map(|one| one.seconds).collect()
    }

    pub(super) fn floor(&self) -> f64 {
        median(self.floors_s.clone()).unwrap_or(f64::NAN)
    }

    /// In the middle of all rounds; nothing where the tool was not there.
    pub(super) fn took(&self, tool: &str) -> Option<f64> {
        median(self.seconds(tool))
    }

    pub(super) fn ours(&self) -> Option<f64> {
        self.took(OURS)
    }

    /// Ours until runs could begin, which wait for no sync.
    pub(super) fn usable(&self) -> Option<f64> {
        median(self.tools.get(OURS)?.pulls.iter().filter_map(|one| one.usable_seconds).collect())
    }

    pub(super) fn memory_mib(&self, tool: &str) -> Option<f64> {
        Some((self.tools.get(tool)?.memory_bytes >> 20) as f64)
    }

    /// The quickest of all others.
    pub(super) fn best_peer(&self) -> Option<(&'static str, f64)> {
        let peers = self.tools.keys().filter(|tool| **tool != OURS);
        peers.filter_map(|tool| Some((*tool, self.took(tool)?))).min_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

pub(super) fn verdict(measured: f64, most: f64) -> &'static str {
    if measured <= most { "met" } else { "**missed**" }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

pub(super) fn markdown(images: &[Image]) -> String {
    let mut text = String::new();
    if images.is_empty() {
        return text;
    }
    images.iter().for_each(|image| table(&mut text, image));
    text += "\n## Goals\n\n| what | goal | measured | |\n|---|---|---|---|\n";
    for goal in images.iter().flat_map(goals::of) {
        let goals::Goal { what, most, measured } = goal;
        let verdict = verdict(measured, most);
        let _ = writeln!(text, "| {what} | ≤ {most} | {measured:.2} | {verdict} |");
    }
    text
}

fn table(text: &mut String, image: &Image) {
    let head = "| what | s (median) | min–max | × L | ours ÷ it | memory MiB |\n|---|---|---|---|---|---|";
    let _ = writeln!(text, "\n## {}\n\n{head}", image.image);
    let ours = image.usable().unwrap_or(f64::NAN);
    let mut line = |what: &str, seconds: f64, range: &str, memory: &str| {
        let (floors, ratio) = (seconds / image.floor(), ours / seconds);
        let _ = writeln!(text, "| {what} | {seconds:.2} | {range} | {floors:.2} | {ratio:.2} | {memory} |");
    };
    for tool in image.tools.keys() {
        let all = image.seconds(tool);
        let least = all.iter().copied().fold(f64::MAX, f64::min);
        let most = all.iter().copied().fold(0.0, f64::max);
        let memory = image.memory_mib(tool).unwrap_or(f64::NAN);
        let range = format!("{least:.2}–{most:.2}");
        line(tool, image.took(tool).unwrap_or(f64::NAN), &range, &format!("{memory:.0}"));
    }
    line("sandglass, until runs can begin", ours, "", "");
    line("L: download, both hashes, igzip and tar x, in CPU seconds by cores", image.floor(), "", "");
}
