//! What was measured, put together over the rounds.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// Who, what, how, and by how many.
type Key = (String, String, String, u64);

#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) machine: Vec<(String, String)>,
    pub(super) quick: bool,
    pub(super) rounds: u64,
    pub(super) cores: u64,
    /// Each with what it is, in the order in which they are shown.
    pub(super) subjects: Vec<(String, String)>,
    pub(super) programs: Vec<(String, String)>,
    pub(super) left_out: Vec<(String, String)>,
    merged: BTreeMap<Key, Merged>,
}

/// One way of asking one subject for one program, all rounds together.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// Sorted.
    latencies_us: Vec<u64>,
    /// Of each round.
    walls_us: Vec<u64>,
}

impl Samples {
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let all: Value = serde_json::from_slice(bytes).context("it is no JSON")?;
        let machine = all["machine"].as_object().context("there is no machine")?;
        let machine = machine.iter().map(|(name, value)| {
            (name.replace('_', " "), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
        let mut merged = BTreeMap::<Key, Merged>::new();
        for measure in all["measures"].as_array().context("there are no measures")? {
            let key = (
                text(measure, "subject"),
                text(measure, "program"),
                text(measure, "mode"),
                number(&measure["clients"]),
            );
            let entry = merged.entry(key).or_default();
            let latencies = measure["latencies_us"].as_array().context("a measure has no latencies")?;
            entry.latencies_us.extend(latencies.iter().map(number));
            entry.walls_us.push(number(&measure["wall_us"]));
        }
        for merged in merged.values_mut() {
            merged.latencies_us.sort_unstable();
            merged.walls_us.sort_unstable();
        }
        Ok(Self {
            machine: machine.collect(),
            quick: all["quick"] == true,
            rounds: number(&all["rounds"]),
            cores: number(&all["machine"]["cores"]),
            subjects: pairs(&all["subjects"], "name", "what"),
            programs: pairs(&all["programs"], "name", "what"),
            left_out: pairs(&all["left_out"], "what", "why"),
            merged,
        })
    }

    pub(super) fn get(&self, subject: &str, program: &str, mode: &str, clients: u64) -> Option<&Merged> {
        self.merged.get(&(subject.into(), program.into(), mode.into(), clients))
    }

    /// One client with a request every 10 ms.
    pub(super) fn paced(&self, subject: &str, program: &str) -> Option<&Merged> {
        self.get(subject, program, "paced", 1)
    }

    /// Runs a second with so many clients that ask again as soon as they are answered.
    pub(super) fn rate(&self, subject: &str, program: &str, clients: u64) -> Option<f64> {
        self.get(subject, program, "closed", clients).map(Merged::rate)
    }

    /// With how many clients anybody was asked for this program.
    pub(super) fn client_counts(&self, program: &str) -> Vec<u64> {
        let mut counts: Vec<u64> = self
            .merged
            .keys()
            .filter(|(_, name, mode, _)| name == program && mode == "closed")
            .map(|(.., clients)| *clients)
            .collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    }

    /// The crowd of that mode, however large it was.
    pub(super) fn crowd(&self, subject: &str, program: &str, mode: &str) -> Option<&Merged> {
        let mut found = self.merged.iter().filter(|((who, what, how, _), _)| {
            who.as_str() == subject && what.as_str() == program && how.as_str() == mode
        });
        found.next().map(|(_, merged)| merged)
    }
}

impl Merged {
    /// The smallest latency that so many of a hundred do not exceed, in milliseconds.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.latencies_us.len() * percent).div_ceil(100).max(1);
        self.latencies_us.get(rank - 1).map_or(0.0, |us| *us as f64 / 1000.0)
    }

    /// Runs a second.
    pub(super) fn rate(&self) -> f64 {
        let seconds = self.walls_us.iter().sum::<u64>() as f64 / 1e6;
        self.latencies_us.len() as f64 / seconds.max(1e-6)
    }

    /// Until the last answer, in milliseconds, in the middlemost round.
    pub(super) fn last_answer(&self) -> f64 {
        self.walls_us.get(self.walls_us.len() / 2).map_or(0.0, |us| *us as f64 / 1000.0)
    }

    pub(super) fn runs(&self) -> usize {
        self.latencies_us.len()
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn pairs(list: &Value, first: &str, second: &str) -> Vec<(String, String)> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|entry| (text(entry, first), text(entry, second))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// Two rounds of subjects that take 1 to 2.5 ms, and of one that is slow and was asked little.
    pub(in super::super) fn some() -> Samples {
        let mut measures = Vec::new();
        let subjects = [
            ("floor A", 1000),
            ("floor B", 1500),
            ("Sandglass", 2000),
            ("go-judge", 2500),
            ("docker", 300_000),
        ];
        for (subject, us) in subjects {
            for round in 0..2 {
                let measure = |mode: &str, clients: u64, runs: u64| {
                    json!({
                        "subject": subject, "program": "nothing", "mode": mode, "clients": clients, "round": round,
                        "latencies_us": (0..runs).map(|run| us + run).collect::<Vec<_>>(), "wall_us": us * runs,
                    })
                };
                measures.push(measure("paced", 1, 50));
                measures.extend([1, 4].map(|clients| measure("closed", clients, 100)));
                if us < 10_000 {
                    measures.push(measure("burst", 100, 100));
                }
            }
        }
        let subjects: Vec<_> = subjects
            .iter()
            .map(|(name, _)| json!({ "name": name, "what": format!("{name} & what it is") }))
            .collect();
        let all = json!({
            "machine": { "kernel": "6.1", "cores": 2 }, "quick": true, "rounds": 2, "subjects": subjects,
            "programs": [{ "name": "nothing", "what": "nothing at all" }],
            "left_out": [{ "what": "nsjail", "why": "it is not there" }], "measures": measures,
        });
        Samples::read(all.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn rounds_are_put_together() {
        let samples = some();
        let paced = samples.paced("Sandglass", "nothing").unwrap();
        assert_eq!(paced.runs(), 100);
        assert_eq!(paced.percentile(50), 2.024);
        assert_eq!(paced.percentile(99), 2.049);
        assert_eq!(samples.rate("Sandglass", "nothing", 1), Some(500.0));
        assert_eq!(samples.client_counts("nothing"), [1, 4]);
        assert_eq!(samples.crowd("Sandglass", "nothing", "burst").unwrap().last_answer(), 200.0);
        assert!(samples.crowd("docker", "nothing", "burst").is_none());
        assert!(samples.paced("nobody", "nothing").is_none());
    }

    #[test]
    fn percentiles_are_latencies_that_were_measured() {
        for (latencies, percent, expected) in [
            (vec![7000], 50, 7.0),
            (vec![1000, 2000], 50, 1.0),
            (vec![1000, 2000, 3000], 50, 2.0),
            ((1..=100).map(|ms| ms * 1000).collect(), 99, 99.0),
            ((1..=200).map(|ms| ms * 1000).collect(), 90, 180.0),
            (vec![], 50, 0.0),
        ] {
            let merged = Merged { latencies_us: latencies.clone(), walls_us: vec![] };
            assert_eq!(merged.percentile(percent), expected, "{percent} of {}", latencies.len());
        }
    }

    #[test]
    fn what_is_no_measurement_is_refused() {
        for text in ["", "[]", "{}", r#"{"machine":{}}"#] {
            assert!(Samples::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
