//! Paths and queries, as strict as bodies: an unknown parameter is refused, not ignored.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use run::RunId;

use super::App;
use super::auth::Caller;
use super::problem::{self, BadValue, Problem};

/// The query's parameters. Those that nobody takes are refused at the end.
#[derive(Debug, Default)]
pub struct Parameters {
    given: Vec<(String, String)>,
    /// Those that the call takes.
    known: Vec<&'static str>,
    bad: Vec<BadValue>,
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.uri)
    }
}

impl Parameters {
    fn read(uri: &Uri) -> Result<Self, Problem> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let Query(given) =
            query.map_err(|error| Problem::invalid(vec![BadValue::parameter("query", error.body_text())]))?;
        Ok(Self { given, ..Self::default() })
    }

    pub fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let (taken, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.given).into_iter().partition(|(given, _)| given == name);
        self.given = rest;
        if taken.len() > 1 {
            self.refuse(name, "is given more than once");
        }
        taken.into_iter().next().map(|(_, value)| value)
    }

    pub fn refuse(&mut self, name: &str, detail: &str) {
        self.bad.push(BadValue::parameter(name, detail));
    }

    /// A whole number of a range.
    pub fn number(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<usize>,
        default: usize,
    ) -> usize {
        let Some(text) = self.take(name) else { return default };
        match text.parse().ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                self.refuse(
                    name,
                    &format!("must be a whole number from {} to {}", range.start(), range.end()),
                );
                default
            }
        }
    }

    /// A word of a closed set.
    pub fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.take(name)?;
        let found = choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
            self.refuse(name, &format!("must be one of {}", names.join(", ")));
        }
        found
    }

    /// Whether what has ended is to be forgotten.
    pub fn purge(&mut self) -> bool {
        self.choice("purge", &[("true", true), ("false", false)]).unwrap_or_default()
    }

    pub fn finish(mut self) -> Result<(), Problem> {
        let takes = match self.known.as_slice() {
            [] => "none".to_owned(),
            known => known.join(", "),
        };
        for (name, _) in std::mem::take(&mut self.given) {
            let shown: String = name.chars().take(100).collect();
            self.refuse(&shown, &format!("unknown parameter; this call takes {takes}"));
        }
        if self.bad.is_empty() { Ok(()) } else { Err(Problem::invalid(self.bad)) }
    }
}

/// The query of a call that takes no parameters. Where there is none, which is nearly always, nothing is read.
#[derive(Clone, Copy, Debug)]
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::check(&parts.uri)
    }
}

impl NoQuery {
    pub fn check(uri: &Uri) -> Result<Self, Problem> {
        if uri.query().is_some() {
            Parameters::read(uri)?.finish()?;
        }
        Ok(Self)
    }
}

/// `/runs/{id}…`. What is no id names no run, and neither does that of somebody else's.
#[derive(Clone, Copy, Debug)]
pub struct RunPath(pub RunId);

impl FromRequestParts<Arc<App>> for RunPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let PathText(text) = PathText::from_request_parts(parts, app).await?;
        let id = RunId(text.parse().map_err(|_| problem::RUN_NOT_FOUND.problem())?);
        let caller = Caller::from_request_parts(parts, app).await?;
        // Where there is only one principal there is nothing to look up.
        if !caller.principal.is_anonymous() {
            let owner = app.engine.owner(id).await?.filter(|owner| caller.sees(owner));
            owner.ok_or_else(|| problem::RUN_NOT_FOUND.problem())?;
        }
        Ok(Self(id))
    }
}

/// The one variable part of a path. What is not UTF-8 names nothing.
#[derive(Clone, Debug)]
pub struct PathText(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(text)| Self(text)).map_err(|_| problem::NOT_FOUND.problem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(given: &[(&str, &str)]) -> Parameters {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Parameters { given, ..Parameters::default() }
    }

    #[test]
    fn every_bad_parameter_is_named() {
        let mut query =
            parameters(&[("limit", "0"), ("state", "done"), ("limits", "1"), ("x", "1"), ("x", "2")]);
        assert_eq!(query.number("limit", 1..=500, 50), 50);
        assert_eq!(query.choice("state", &[("queued", 1)]), None);
        query.take("x");
        let problem = query.finish().unwrap_err();
        let names: Vec<_> = problem.errors.iter().filter_map(|bad| bad.parameter.as_deref()).collect();
        assert_eq!(names, ["limit", "state", "x", "limits"]);
        assert_eq!(problem.errors[3].detail, "unknown parameter; this call takes limit, state, x");
        let problem = parameters(&[("wiat", "1")]).finish().unwrap_err();
        assert_eq!(problem.detail, "wiat: unknown parameter; this call takes none");
    }

    #[test]
    fn good_parameters_are_taken() {
        let mut query = parameters(&[("limit", "7"), ("state", "queued")]);
        assert_eq!(query.number("limit", 1..=500, 50), 7);
        assert_eq!(query.choice("state", &[("queued", 1)]), Some(1));
        assert!(query.finish().is_ok());
    }
}
