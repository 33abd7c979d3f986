//! The OpenAPI document and its page; both work without the network.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use run::{Limits, LimitsRequest, Maxima};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::{self, Kind};
use super::{App, auth, create_run, examples, health, router};

#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Sandglass",
        description = "Runs one command of one OCI image in one fresh sandbox, with a limit on everything, and says \
                       exactly how it ended. A program that fails is not an HTTP error: a run that took place is \
                       `200`, and `outcome` says how it ended. A field or a parameter that a call does not take is \
                       refused (`422`), not ignored.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/")),
    tags(
        (name = "runs", description = "One command in one fresh sandbox"),
        (name = "batches", description = "One command that prepares, many tests over what it has left"),
        (name = "files", description = "What runs read and what they leave behind"),
        (name = "images", description = "What the server has and can be told to fetch"),
        (name = "server", description = "How it is and what it offers")
    )
)]
pub struct ApiDoc;

/// The whole document, as `openapi/v1.json` has it.
pub fn document() -> Value {
    let (_, api) = router::routes().split_for_parts();
    let mut document = serde_json::to_value(api).unwrap_or_default();
    if let Some(paths) = document["paths"].as_object_mut() {
        // The router's way to say "the rest of the path" is not OpenAPI's.
        *paths =
            std::mem::take(paths).into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
        for (path, item) in paths {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                add_common_problems(path, method, operation);
                without_null(operation);
                say_what_bytes_are(operation);
            }
        }
    }
    let schemas = &mut document["components"]["schemas"];
    bound_limits(schemas);
    for (name, most) in [("env", create_run::MAX_ENV), ("labels", create_run::MAX_LABELS)] {
        schemas["CreateRun"]["properties"][name]["maxProperties"] = json!(most);
    }
    examples::add(&mut document);
    document["components"]["securitySchemes"]["key"] = json!({
        "type": "http", "scheme": "bearer",
        "description": "A key that an operator made with `sandglass key create`. A server without keys asks for none."
    });
    document
}

/// What every call can answer, because the layers around it can.
fn add_common_problems(path: &str, method: &str, operation: &mut Value) {
    let mut kinds = vec![&problem::FOREIGN_ORIGIN, &problem::HEADERS_TOO_LARGE, &problem::INTERNAL_ERROR];
    if !health::PROBES.contains(&path) {
        // At least a query that the call does not take.
        kinds.push(&problem::INVALID_REQUEST);
    }
    if ["/runs", "/batches", "/images", "/info"].iter().any(|call| path.starts_with(call)) {
        kinds.push(&problem::NOT_ACCEPTABLE);
    }
    if method == "post" {
        kinds.extend([
            &problem::NOT_JSON,
            &problem::BODY_TIMEOUT,
            &problem::BODY_TOO_LARGE,
            &problem::UNSUPPORTED_MEDIA_TYPE,
        ]);
    }
    if auth::is_guarded(path) {
        kinds.extend([&problem::UNAUTHORIZED, &problem::INSUFFICIENT_SCOPE]);
        // With and without: a server without keys asks for none.
        operation["security"] = json!([{}, {"key": []}]);
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for kind in kinds {
        responses.entry(kind.status.to_string()).or_insert_with(|| common(kind));
    }
    for response in responses.values_mut() {
        let headers = &mut response["headers"];
        if headers.is_null() {
            *headers = Value::Object(Map::new());
        }
        headers["X-Request-Id"] = json!({
            "description": "The request's id, taken from the request if it is sane", "schema": {"type": "string"}
        });
    }
}

fn common(kind: &Kind) -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({"description": kind.title, "content": {problem::MEDIA_TYPE: {"schema": schema}}})
}

/// A parameter is there or not; in a path, a query or a header nothing can be `null`.
fn without_null(operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        let schema = &mut parameter["schema"];
        if let Some(types) = schema["type"].as_array()
            && let [kind, null] = types.as_slice()
            && null == "null"
        {
            schema["type"] = kind.clone();
        }
        if let Some(choices) = schema["oneOf"].as_array()
            && let Some(only) = choices.iter().find(|choice| choice["type"] != "null")
        {
            *schema = only.clone();
        }
    }
}

/// Bodies and answers that are taken as they are. A generator makes nothing of a body without a schema, and numbers
/// of bytes where nobody says better.
fn say_what_bytes_are(operation: &mut Value) {
    let bytes = json!({"type": "string", "format": "binary"});
    let contents = operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
    for (kind, media) in contents.into_iter().flatten() {
        if media.get("schema").is_none() {
            media["schema"] = match kind.as_str() {
                "multipart/form-data" => {
                    json!({"type": "object", "properties": {"file": bytes}, "required": ["file"]})
                }
                _ => bytes.clone(),
            };
        }
    }
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut).into_iter().flatten();
    let answers =
        responses.filter_map(|(_, response)| response.get_mut("content")?.as_object_mut()).flatten();
    for (kind, media) in answers {
        if ["application/octet-stream", "application/x-tar"].contains(&kind.as_str()) {
            media["schema"] = bytes.clone();
        }
    }
}

/// The least of each limit, as refusing zero of everything tells it. The most is the server's own:
/// `GET /info` has it.
fn bound_limits(schemas: &mut Value) {
    let least = |name: &str| {
        let nothing = Map::from_iter([(name.to_owned(), json!(0))]);
        let request: LimitsRequest = serde_json::from_value(Value::Object(nothing)).ok()?;
        let bad = request.resolve(&Limits::default(), &Maxima::default()).err()?;
        let least = serde_json::from_str(&bad.iter().find(|bad| bad.name == name)?.min).ok()?;
        Some::<Value>(least)
    };
    for name in create_run::limit_names() {
        if let Some(least) = least(&name) {
            schemas["LimitsRequest"]["properties"][&name]["minimum"] = least;
        }
        // The defaults are the server's own, and what answers say of limits is always whole.
        for schema in ["LimitsRequest", "Limits", "Maxima"] {
            if let Some(property) = schemas[schema]["properties"][&name].as_object_mut() {
                property.remove("default");
            }
        }
    }
    for schema in ["Limits", "Maxima"] {
        schemas[schema]["required"] = json!(create_run::limit_names());
    }
}

/// Every documented call, as the template of its path and its method.
pub fn calls(document: &Value) -> Vec<(String, String)> {
    let mut calls = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, _) in item.as_object().into_iter().flatten() {
            calls.push((path.clone(), method.to_uppercase()));
        }
    }
    calls
}

/// `GET /openapi.json`.
pub async fn openapi(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

/// `GET /docs`: the page, from files inside this program.
pub fn page() -> Router<Arc<App>> {
    SwaggerUi::new("/docs").config(Config::from("/openapi.json").validator_url("none")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_document_is_the_generated_one() {
        let published: Value = serde_json::from_str(include_str!("../../openapi/v1.json")).unwrap();
        assert!(published == document(), "run `sandglass openapi > openapi/v1.json`");
    }

    #[test]
    fn every_status_of_a_problem_has_a_type_that_gives_it() {
        let document = document();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                for status in
                    operation["responses"].as_object().unwrap().keys().filter(|s| s.as_str() >= "400")
                {
                    let known = problem::ALL.iter().any(|kind| kind.status.to_string() == *status);
                    assert!(known, "{method} {path} {status}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_bytes() {
        let document = document();
        for (path, kind) in [
            ("/runs/{id}/stdout", "application/octet-stream"),
            ("/files/{id}", "application/octet-stream"),
            ("/backup", "application/x-tar"),
        ] {
            let content = &document["paths"][path]["get"]["responses"]["200"]["content"];
            assert_eq!(content[kind]["schema"]["format"], "binary", "{path}");
        }
    }

    #[test]
    fn limits_are_bounded() {
        let document = document();
        let limits = &document["components"]["schemas"]["LimitsRequest"]["properties"];
        assert_eq!(limits["processes"]["minimum"], 1);
        assert_eq!(limits["memory_bytes"]["minimum"], 2 * 1024 * 1024);
        assert_eq!(limits["cpus"]["minimum"], 0.01);
        assert!(limits["cpus"].get("default").is_none(), "absent is what the operator has set");
    }
}
