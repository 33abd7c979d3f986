//! Which runs `GET /runs` shows, and which batches `GET /batches`.

use std::collections::BTreeMap;

use engine::batch::{Batch, BatchId, BatchState};
use run::{Outcome, Run, RunId, RunState, Verdict};
use uuid::Uuid;

use super::query::Parameters;

/// What both lists can be asked to leave out.
#[derive(Debug, Default)]
struct Common {
    /// As the client wrote it, and in full.
    image: Option<[String; 2]>,
    label: Option<(String, String)>,
    before: Option<Uuid>,
}

impl Common {
    fn read(query: &mut Parameters) -> Self {
        let label = query.take("label").and_then(|text| match text.split_once(':') {
            Some((key, value)) => Some((key.to_owned(), value.to_owned())),
            None => {
                query.refuse("label", "must be like key:value");
                None
            }
        });
        let before = query.take("cursor").and_then(|text| {
            let id = text.parse().ok();
            if id.is_none() {
                query.refuse("cursor", "must be the `next_cursor` of an earlier page");
            }
            id
        });
        let image = query.take("image");
        let image = image.map(|image| [image::full_name(&image).unwrap_or_default(), image]);
        Self { image, label, before }
    }

    fn matches(&self, reference: &str, labels: &BTreeMap<String, String>) -> bool {
        self.image.as_ref().is_none_or(|names| names.iter().any(|name| name == reference))
            && self.label.as_ref().is_none_or(|(key, value)| labels.get(key) == Some(value))
    }
}

/// What `GET /runs` was asked to leave out.
#[derive(Debug, Default)]
pub(super) struct Filter {
    state: Option<RunState>,
    outcome: Option<&'static str>,
    common: Common,
}

impl Filter {
    pub(super) fn read(query: &mut Parameters) -> Self {
        let states = [
            ("queued", RunState::Queued),
            ("preparing", RunState::Preparing),
            ("running", RunState::Running),
            ("finished", RunState::Finished),
        ];
        Self {
            state: query.choice("state", &states),
            outcome: query.choice("outcome", &Outcome::NAMES.map(|name| (name, name))),
            common: Common::read(query),
        }
    }

    pub(super) fn before(&self) -> Option<RunId> {
        self.common.before.map(RunId)
    }

    pub(super) fn matches(&self, run: &Run) -> bool {
        let outcome = run.outcome.as_ref().map(Outcome::name);
        self.state.is_none_or(|state| run.state == state)
            && self.outcome.is_none_or(|wanted| outcome == Some(wanted))
            && self.common.matches(&run.image.reference, &run.labels)
    }
}

/// What `GET /batches` was asked to leave out.
#[derive(Debug, Default)]
pub(super) struct BatchFilter {
    state: Option<BatchState>,
    verdict: Option<Verdict>,
    common: Common,
}

impl BatchFilter {
    pub(super) fn read(query: &mut Parameters) -> Self {
        let states = [
            ("preparing", BatchState::Preparing),
            ("running", BatchState::Running),
            ("finished", BatchState::Finished),
        ];
        Self {
            state: query.choice("state", &states),
            verdict: query.choice("verdict", &Verdict::NAMES),
            common: Common::read(query),
        }
    }

    pub(super) fn before(&self) -> Option<BatchId> {
        self.common.before.map(BatchId)
    }

    pub(super) fn matches(&self, batch: &Batch) -> bool {
        // A batch has its image as it was asked for.
        let full = image::full_name(&batch.image);
        let reference = full.as_deref().unwrap_or(&batch.image);
        self.state.is_none_or(|state| batch.state == state)
            && self.verdict.is_none_or(|verdict| batch.verdict == Some(verdict))
            && self.common.matches(reference, &batch.labels)
    }
}
