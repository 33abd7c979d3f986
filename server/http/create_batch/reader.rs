//! The runs of a batch, each read by the code that reads a request for one.

use std::collections::HashSet;

use engine::batch::{Expect, TestSpec};
use run::{Compare, RunSpec};
use serde_json::{Map, Value};

use super::super::checks::check_stdin;
use super::super::content::StdinRequest;
use super::super::create_run::CreateRun;
use super::super::fields::{Fields, kind};
use super::super::laid::Laid;
use super::super::problem::{self, BadValue, Problem};
use super::Around;

const MAX_NAME_CHARS: usize = 200;

pub(super) struct Reader<'a> {
    around: Around<'a>,
    /// What all runs have in common.
    pub(super) common: &'a Map<String, Value>,
    /// What is wrong with it.
    told: HashSet<BadValue>,
    pub(super) bad: Vec<BadValue>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(around: Around<'a>, common: &'a Map<String, Value>, bad: Vec<BadValue>) -> Self {
        Self { around, common, told: HashSet::new(), bad }
    }

    /// A run of these parts. What is wrong with one of `own` stands `at` that place, anything else where the
    /// batch has it.
    pub(super) fn run(
        &mut self,
        at: &str,
        mut part: Map<String, Value>,
        files: Option<Value>,
        own: &[&str],
    ) -> Result<Option<RunSpec>, Problem> {
        let own_limits = part.remove("limits");
        let mut request = self.common.clone();
        request.extend(part);
        request.extend(files.map(|files| ("files".to_owned(), files)));
        let mut limit_names = Vec::new();
        match own_limits {
            None => {}
            Some(Value::Object(limits)) => {
                limit_names.extend(limits.keys().map(|name| format!("/limits/{name}")));
                let common = request.entry("limits").or_insert_with(|| Value::Object(Map::new()));
                // Where the batch's own are of the wrong type, that will be told.
                if let Value::Object(common) = common {
                    common.extend(limits);
                }
            }
            Some(other) => {
                let detail = format!("must be an object, not {}", kind(&other));
                self.bad.push(BadValue::at(format!("{at}/limits"), detail));
            }
        }
        let Around { allowed, principal, lookup, .. } = self.around;
        match CreateRun::spec(Value::Object(request), allowed, principal, lookup) {
            Ok(spec) => Ok(Some(spec)),
            Err(problem) if problem.kind == &problem::INVALID_REQUEST => {
                for error in problem.errors {
                    let pointer = error.pointer.unwrap_or_default();
                    let is_own = own.iter().any(|name| {
                        pointer.strip_prefix('/').and_then(|rest| rest.split('/').next()) == Some(*name)
                    });
                    let moved = is_own || limit_names.contains(&pointer);
                    if moved {
                        self.bad.push(BadValue::at(format!("{at}{pointer}"), error.detail));
                    } else {
                        self.tell_once(BadValue::at(pointer, error.detail));
                    }
                }
                Ok(None)
            }
            Err(problem) => Err(problem),
        }
    }

    fn tell_once(&mut self, error: BadValue) {
        if self.told.insert(error.clone()) {
            self.bad.push(error);
        }
    }

    /// A test over a run that has these parts, and in which files are `laid`. Only what is the test's own is read.
    pub(super) fn test(
        &mut self,
        at: &str,
        test: Value,
        run: &Map<String, Value>,
        laid: &Laid,
    ) -> Result<Option<TestSpec>, Problem> {
        let Some(mut fields) = Fields::open(at, test, &mut self.bad) else { return Ok(None) };
        let name = fields.text("name");
        if name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME_CHARS) {
            fields.refuse("name", format!("must have at most {MAX_NAME_CHARS} characters"));
        }
        let expect = read_expect(&mut fields);
        let files = fields.take("files");
        let mut part = Map::new();
        let mut own = vec!["stdin", "files"];
        for name in ["args", "outputs"] {
            if let Some(value) = fields.take(name) {
                part.insert(name.into(), value);
                own.push(name);
            }
        }
        let (has_args, has_outputs) = (own.contains(&"args"), own.contains(&"outputs"));
        if has_args {
            part.extend(run.get("cmd").map(|cmd| ("cmd".to_owned(), cmd.clone())));
        }
        part.extend(fields.take("stdin").map(|stdin| ("stdin".to_owned(), stdin)));
        let limits = fields.take("limits");
        fields.finish();
        let limits = match (run.get("limits").cloned(), limits) {
            (Some(Value::Object(mut common)), Some(Value::Object(own))) => {
                common.extend(own);
                Some(Value::Object(common))
            }
            (common, own) => own.or(common),
        };
        part.extend(limits.map(|limits| ("limits".to_owned(), limits)));
        let spec = self.run(at, part, files, &own)?;
        if let Some(spec) = &spec {
            self.check_laid(at, spec, laid);
        }
        let lookup = self.around.lookup;
        let expect = expect.map(|(stdout, compare)| {
            let stdout = check_stdin(&format!("{at}/expect/stdout"), Some(stdout), lookup, &mut self.bad);
            Expect { stdout, compare }
        });
        Ok(spec.map(|spec| TestSpec {
            name,
            command: has_args.then_some(spec.command),
            stdin: spec.stdin,
            files: spec.files,
            limits: spec.limits,
            outputs: has_outputs.then_some(spec.outputs),
            expect,
        }))
    }

    /// A test's own files have been looked at alone; here together with those that all tests have.
    fn check_laid(&mut self, at: &str, test: &RunSpec, laid: &Laid) {
        if laid.is_empty() {
            return;
        }
        let at = if test.files.is_empty() { "/files".to_owned() } else { format!("{at}/files") };
        let all = laid.and(&Laid::of(&test.files, self.around.lookup));
        for BadValue { pointer, detail, .. } in all.check(&at, &test.limits) {
            let detail = format!("with those of the batch {detail}");
            self.tell_once(BadValue { pointer, parameter: None, detail });
        }
    }
}

fn read_expect(fields: &mut Fields<'_>) -> Option<(StdinRequest, Compare)> {
    let value = fields.take("expect")?;
    let mut inner = fields.open_child("expect", value)?;
    let before = inner.complaints();
    let stdout = StdinRequest::read("stdout", &mut inner);
    if stdout.is_none() && inner.complaints() == before {
        inner.refuse("stdout", "is required");
    }
    let choices = [("exact", Compare::Exact), ("lines", Compare::Lines), ("tokens", Compare::Tokens)];
    let compare = inner.choice("compare", &choices).unwrap_or_default();
    inner.finish();
    stdout.map(|stdout| (stdout, compare))
}
