//! The `Accept` header: in which form a client wants its answer.

use axum::http::{HeaderMap, Method, header};

pub(super) const JSON: &str = "application/json";
pub(super) const EVENTS: &str = "text/event-stream";

/// Whether a client takes the answer as it comes rather than at the end: it asks for events by name, and
/// not for JSON more than for them.
pub(super) fn prefers_events(headers: &HeaderMap) -> bool {
    let (events, json) = (quality(headers, EVENTS, false), quality(headers, JSON, false));
    events > 0.0 && events >= json
}

/// Whether the client can read what the call will answer with.
pub(super) fn acceptable(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let json = || quality(headers, JSON, true) > 0.0;
    let events = || quality(headers, EVENTS, true) > 0.0;
    match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["runs", _, "stdout" | "stderr"] => true,
        ["runs" | "batches", _, "events"] => events(),
        ["runs" | "batches" | "images"] if method == Method::POST => json() || events(),
        ["runs" | "batches" | "images" | "info", ..] => json(),
        _ => true,
    }
}

/// How much a client wants a form; 0 is not at all. Wildcards count where the form is what it gets anyway.
fn quality(headers: &HeaderMap, form: &str, wildcards: bool) -> f32 {
    let mut lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if lines.peek().is_none() {
        return if wildcards { 1.0 } else { 0.0 };
    }
    let family = form.split('/').next().unwrap_or_default();
    let wanted = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let named = media == form;
        let wild = media == "*/*" || media.is_empty() || media.strip_suffix("/*") == Some(family);
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
        (named || (wildcards && wild)).then_some(quality)
    };
    lines.flat_map(|line| line.split(',')).filter_map(wanted).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accept: Option<&str>) -> HeaderMap {
        accept.iter().map(|accept| (header::ACCEPT, accept.parse().unwrap())).collect()
    }

    #[test]
    fn who_cannot_read_the_answer_is_told() {
        let (get, post) = (Method::GET, Method::POST);
        for (method, path, accept, expected) in [
            (&get, "/runs", None, true),
            (&get, "/runs", Some("*/*"), true),
            (&get, "/runs", Some("application/json"), true),
            (&get, "/runs", Some("text/html, application/*;q=0.5"), true),
            (&get, "/runs", Some("application/json;q=0"), false),
            (&get, "/runs", Some("text/html"), false),
            (&get, "/runs", Some("text/event-stream"), false),
            (&post, "/runs", Some("text/event-stream"), true),
            (&post, "/runs", Some("text/html"), false),
            (&get, "/runs/1", Some("text/event-stream"), false),
            (&get, "/runs/1/events", None, true),
            (&get, "/runs/1/events", Some("text/event-stream"), true),
            (&get, "/runs/1/events", Some("application/json"), false),
            (&get, "/runs/1/stdout", Some("image/png"), true),
            (&get, "/images/x/y/events", Some("text/event-stream"), false),
            (&get, "/docs", Some("text/html"), true),
            (&get, "/information", Some("text/html"), true),
        ] {
            assert_eq!(acceptable(method, path, &accepting(accept)), expected, "{method} {path} {accept:?}");
        }
    }

    #[test]
    fn events_come_only_to_who_asks_for_them_by_name() {
        for (accept, expected) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/*"), false),
            (Some("text/event-stream"), true),
            (Some("text/event-stream;q=0"), false),
            (Some("text/event-stream, application/json;q=0.5"), true),
            (Some("application/json, text/event-stream;q=0.5"), false),
        ] {
            assert_eq!(prefers_events(&accepting(accept)), expected, "{accept:?}");
        }
    }
}
