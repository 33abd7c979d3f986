use run::{Limits, Maxima, OutputPattern, Stdin};
use serde_json::json;
use utoipa::PartialSchema;

use super::*;

fn read(body: Value) -> Result<BatchSpec, Vec<String>> {
    let allowed = Allowed { defaults: Limits::default(), maxima: Maxima::default(), compat: false };
    let principal = Arc::clone(Principal::anonymous());
    let around = Around { allowed: &allowed, principal: &principal, lookup: &|_| None, prepared: &|_| None };
    spec(body, around).map_err(|problem| problem.errors.into_iter().filter_map(|bad| bad.pointer).collect())
}

#[test]
fn what_the_runs_have_in_common_is_said_once() {
    let spec = read(json!({
        "image": "gcc", "env": {"A": "b"}, "workdir": "/w", "files": [{"path": "m.c", "text": "x"}],
        "limits": {"processes": 7, "wall_time_ms": 1}, "prepare": {"cmd": "gcc", "limits": {"wall_time_ms": 2}},
        "run": {"cmd": "./a", "args": ["1"], "limits": {"wall_time_ms": 3}, "outputs": ["o"]}, "stop_on_failure": true,
        "tests": [
            {"name": "one", "stdin": "i", "expect": {"stdout": "o", "compare": "tokens"}},
            {"args": ["2"], "limits": {"wall_time_ms": 4}, "files": [{"path": "t", "text": "y"}],
             "outputs": ["p?"]},
        ], "parallelism": 3,
    }))
    .unwrap();
    let Ground::Prepare(prepare) = &spec.ground else { panic!("{:?}", spec.ground) };
    assert_eq!((prepare.files.len(), spec.run.files.len()), (1, 0));
    let limits = |limits: &Limits| (limits.processes, limits.wall_time_ms);
    assert_eq!((limits(&prepare.limits), limits(&spec.run.limits)), ((7, 2), (7, 3)));
    let tests = &spec.tests;
    assert_eq!((limits(&tests[0].limits), limits(&tests[1].limits)), ((7, 3), (7, 4)));
    assert_eq!((tests[0].command.is_some(), &tests[0].stdin), (false, &Stdin::Bytes(b"i".to_vec())));
    assert_eq!(tests[1].command.as_ref().map(|command| command.args()), Some(&["2".to_owned()][..]));
    assert_eq!((tests[0].expect.as_ref().unwrap().compare, tests[1].files.len()), (Compare::Tokens, 1));
    assert_eq!((spec.stop_on_failure, spec.parallelism), (true, Some(3)));
    let outputs =
        |outputs: &[&str]| outputs.iter().map(|text| OutputPattern::parse(text)).collect::<Vec<_>>();
    assert_eq!((spec.run.outputs, &tests[0].outputs), (outputs(&["o"]), &None));
    assert_eq!(tests[1].outputs, Some(outputs(&["p?"])));
    // Without a prepare command every test gets the files.
    let spec = read(json!({"image": "a", "files": [{"path": "x", "text": "y"}], "tests": [{}]})).unwrap();
    assert_eq!(spec.run.files.len(), 1);
}

#[test]
fn every_bad_value_is_named_where_it_was_written() {
    for (body, pointers) in [
        (json!({"image": "a"}), &["/tests"][..]),
        (json!({"tests": []}), &["/image"]),
        (json!({"image": "a", "tests": {}}), &["/tests"]),
        (json!({"image": "a", "tests": [], "cmd": "x"}), &["/cmd"]),
        (json!({"image": "a", "tests": [1]}), &["/tests/0"]),
        (json!({"image": "a", "tests": [], "prepare": {"cmd": ""}}), &["/prepare/cmd"]),
        (json!({"image": "a", "tests": [], "prepare": {"stdin": ""}}), &["/prepare/stdin"]),
        (json!({"image": "a", "tests": [], "run": {"args": 1}}), &["/run/args"]),
        (json!({"image": "a", "tests": [], "run": {"limits": 1}}), &["/run/limits"]),
        (json!({"image": "a", "tests": [], "limits": {"cpus": 0}}), &["/limits/cpus"]),
        (json!({"image": "a", "tests": [], "run": {"limits": {"cpus": 0}}}), &["/run/limits/cpus"]),
        (json!({"image": "a", "tests": [{"limits": {"x": 1}}]}), &["/tests/0/limits/x"]),
        (json!({"image": "a", "tests": [], "run": {"outputs": [""]}}), &["/run/outputs/0"]),
        (json!({"image": "a", "tests": [{"outputs": [1]}]}), &["/tests/0/outputs/0"]),
        (json!({"image": "a", "tests": [{}, {"stdin": 1}]}), &["/tests/1/stdin"]),
        (json!({"image": "a", "tests": [{"stdin": {"file": "sha256:x"}}]}), &["/tests/0/stdin/file"]),
        (json!({"image": "a", "tests": [{"args": ["\u{0}"]}]}), &["/tests/0/args/0"]),
        (
            json!({"image": "a", "tests": [{"files": [{"path": ""}]}]}),
            &["/tests/0/files/0/path", "/tests/0/files/0"],
        ),
        (json!({"image": "a", "tests": [{"expect": {}}]}), &["/tests/0/expect/stdout"]),
        (
            json!({"image": "a", "tests": [{"expect": {"stdout": {"file": "x"}}}]}),
            &["/tests/0/expect/stdout/file"],
        ),
        (
            json!({"image": "a", "tests": [{"expect": {"stdout": "", "compare": "x"}}]}),
            &["/tests/0/expect/compare"],
        ),
        (json!({"image": "a", "tests": [{"name": "x".repeat(201)}]}), &["/tests/0/name"]),
        (json!({"image": "a", "tests": [], "prepared": "x"}), &["/prepared"]),
        (json!({"tests": [{}, {"args": 1}], "prepared": "x"}), &["/prepared", "/tests/1/args"]),
        (json!({"tests": []}), &["/image"]),
        (json!({"image": "a", "tests": [], "prepared": "x", "prepare": {}}), &["/prepared"]),
        (json!({"image": "a", "tests": [], "parallelism": 0}), &["/parallelism"]),
        (json!({"image": "a", "tests": [], "stop_on_failure": 1}), &["/stop_on_failure"]),
        (json!({"image": "a", "tests": vec![json!({}); MAX_TESTS + 1]}), &["/tests"]),
    ] {
        let shown: String = body.to_string().chars().take(80).collect();
        assert_eq!(read(body).unwrap_err(), pointers, "{shown}");
    }
}

#[test]
fn the_schema_names_what_is_read() {
    let schema = serde_json::to_value(CreateBatch::schema()).unwrap();
    for name in schema["properties"].as_object().unwrap().keys() {
        let unknown = read(json!({"image": "a", "tests": [], name: [[]]}))
            .map_or_else(|bad| bad.iter().any(|at| at.starts_with(&format!("/{name}"))), |_| false);
        assert!(unknown, "{name} is not looked at");
    }
    assert_eq!(schema["additionalProperties"], false);
}
