//! The examples of the document, each a file in `openapi/examples`. A test sends every request to a real server, and
//! holds every answer, written down or received, against its schema.

use serde_json::{Value, json};

macro_rules! example {
    ($name:literal) => {
        ($name, include_str!(concat!("../../openapi/examples/", $name, ".json")))
    };
}

/// For the body of a call, and what each of them shows. The name before the dot is the call's.
const REQUESTS: &[((&str, &str), &str)] = &[
    (example!("create_run.first"), "A command and its arguments"),
    (example!("create_run.full"), "Everything that can be said; the limits are the defaults"),
    (example!("create_run.limited"), "A program that is stopped"),
    (example!("create_batch.judge"), "Compiled once, run for each test, compared"),
    (example!("create_batch.plain"), "Tests over the image alone"),
    (example!("pull_image.first"), "Fetched, or asked about again"),
    (example!("pull_image.pinned"), "Fetched if it is not here, and never collected"),
];

/// For what answers are made of. Those of the first have all the fields of their example, always: a generated client
/// need not ask whether they are there.
const WHOLE: &[(&str, (&str, &str))] = &[
    ("Run", example!("run")),
    ("RunList", example!("run_list")),
    ("Batch", example!("batch")),
    ("BatchList", example!("batch_list")),
    ("Image", example!("image")),
    ("ImageList", example!("image_list")),
    ("UploadedFile", example!("uploaded_file")),
    ("Info", example!("info")),
    ("PrincipalList", example!("principal_list")),
];
const OTHERS: &[(&str, (&str, &str))] =
    &[("Problem", example!("problem")), ("Explanation", example!("explanation"))];

/// Puts every example where it belongs.
pub fn add(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    for (schema, (_, text)) in WHOLE.iter().chain(OTHERS) {
        schemas[schema]["example"] = read(text);
    }
    for (schema, (_, text)) in WHOLE {
        let fields = read(text);
        let names: Vec<_> = fields.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
        schemas[schema]["required"] = json!(names);
    }
    let calls = document["paths"].as_object_mut().into_iter().flatten();
    for operation in calls.filter_map(|(_, item)| item.as_object_mut()).flat_map(|item| item.values_mut()) {
        let call = operation["operationId"].as_str().unwrap_or_default().to_owned();
        for ((name, text), summary) in REQUESTS {
            let Some((_, short)) = name.split_once('.').filter(|(of, _)| *of == call) else { continue };
            let body = &mut operation["requestBody"]["content"]["application/json"];
            body["examples"][short] = json!({ "summary": summary, "value": read(text) });
        }
    }
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_json_and_in_the_document() {
        let document = crate::http::docs::document();
        let whole = document.to_string();
        let answers = || WHOLE.iter().chain(OTHERS);
        let requests = REQUESTS.iter().map(|(example, _)| example);
        for (name, text) in requests.chain(answers().map(|(_, example)| example)) {
            let value = read(text);
            assert!(value.is_object(), "{name}");
            assert!(whole.contains(&value.to_string()), "{name} is nowhere in the document");
        }
        for (schema, _) in answers() {
            assert!(document["components"]["schemas"][schema]["type"].is_string(), "{schema} is no schema");
        }
    }
}
