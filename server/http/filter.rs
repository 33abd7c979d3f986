//! Which runs `GET /runs` shows.

use run::{Outcome, Run, RunId, RunState};

use super::query::Parameters;

/// What `GET /runs` was asked to leave out.
#[derive(Debug, Default)]
pub(super) struct Filter {
    state: Option<RunState>,
    outcome: Option<&'static str>,
    /// As the client wrote it, and in full.
    image: Option<[String; 2]>,
    label: Option<(String, String)>,
    pub(super) before: Option<RunId>,
}

impl Filter {
    pub(super) fn read(query: &mut Parameters) -> Self {
        let states = [
            ("queued", RunState::Queued),
            ("preparing", RunState::Preparing),
            ("running", RunState::Running),
            ("finished", RunState::Finished),
        ];
        let label = query.take("label").and_then(|text| match text.split_once(':') {
            Some((key, value)) => Some((key.to_owned(), value.to_owned())),
            None => {
                query.refuse("label", "must be like key:value");
                None
            }
        });
        let before = query.take("cursor").and_then(|text| {
            let id = text.parse().ok().map(RunId);
            if id.is_none() {
                query.refuse("cursor", "must be the `next_cursor` of an earlier page");
            }
            id
        });
        Self {
            state: query.choice("state", &states),
            outcome: query.choice("outcome", &Outcome::NAMES.map(|name| (name, name))),
            image: query.take("image").map(|image| [image::full_name(&image).unwrap_or_default(), image]),
            label,
            before,
        }
    }

    pub(super) fn matches(&self, run: &Run) -> bool {
        let outcome = run.outcome.as_ref().map(Outcome::name);
        self.state.is_none_or(|state| run.state == state)
            && self.outcome.is_none_or(|wanted| outcome == Some(wanted))
            && self.image.as_ref().is_none_or(|names| names.contains(&run.image.reference))
            && self.label.as_ref().is_none_or(|(key, value)| run.labels.get(key) == Some(value))
    }
}
