//! The body of `POST /runs`: it becomes a spec within the maxima or a problem that names a place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use run::{Limits, Maxima, Principal};
use sandglass::http::create_run::{Allowed, CreateRun};
use sandglass::http::json;

fuzz_target!(|bytes: &[u8]| {
    let allowed = Allowed { defaults: Limits::default(), maxima: Maxima::default(), compat: true };
    match json::parse(bytes).and_then(|body| CreateRun::spec(body, &allowed, Principal::anonymous(), &|_| None)) {
        Ok(spec) => {
            let (limits, maxima) = (&spec.limits, &allowed.maxima);
            assert!(limits.wall_time_ms <= maxima.wall_time_ms && limits.wall_time_ms > 0);
            assert!(limits.memory_bytes <= maxima.memory_bytes && limits.memory_bytes > 0);
            assert!(
                limits.stdout_bytes <= maxima.stdout_bytes && limits.cpus <= maxima.cpus && limits.cpus > 0.0
            );
            assert!(!spec.image.is_empty() && !spec.image.contains('\0'));
        }
        Err(problem) => assert!((400..500).contains(&problem.kind.status), "{problem:?}"),
    }
});
