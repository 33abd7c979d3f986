//! What the dashboard shows, row by row. `@` stands for the selection by job and instance.

/// How a panel draws.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Lines,
    Stacked,
    Number,
    Heatmap,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) panels: &'static [Panel],
}

#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) kind: Kind,
    /// In Grafana's spelling.
    pub(super) unit: &'static str,
    pub(super) width: u32,
    /// Each with its legend.
    pub(super) queries: &'static [(&'static str, &'static str)],
}

const fn lines(
    title: &'static str,
    unit: &'static str,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, kind: Kind::Lines, unit, width: 8, queries }
}

const fn number(
    title: &'static str,
    unit: &'static str,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, kind: Kind::Number, unit, width: 4, queries }
}

const fn stacked(
    title: &'static str,
    unit: &'static str,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, kind: Kind::Stacked, unit, width: 12, queries }
}

const fn heatmap(
    title: &'static str,
    about: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, about, kind: Kind::Heatmap, unit: "s", width: 12, queries }
}

pub(super) const ROWS: &[Row] = &[
    Row { title: "1 Overview", panels: OVERVIEW },
    Row { title: "2 Requests", panels: REQUESTS },
    Row { title: "3 Runs by outcome", panels: OUTCOMES },
    Row { title: "4 Anatomy of a run's latency", panels: ANATOMY },
    Row { title: "5 Saturation", panels: SATURATION },
    Row { title: "6 Queue and admission", panels: QUEUE },
    Row { title: "7 Images", panels: IMAGES },
    Row { title: "8 Leaks and losses", panels: LEAKS },
];

const OVERVIEW: &[Panel] = &[
    number(
        "Runs",
        "reqps",
        "Finished runs each second.",
        &[("sum(rate(sandglass_runs_total{@}[$__rate_interval]))", "runs/s")],
    ),
    number(
        "Without our fault",
        "percentunit",
        "Runs that did not end as sandbox_error: the objective is 99.9 %.",
        &[(
            r#"1 - sum(rate(sandglass_runs_total{outcome="sandbox_error",@}[$__rate_interval])) / sum(rate(sandglass_runs_total{@}[$__rate_interval]))"#,
            "success",
        )],
    ),
    number("Queue", "short", "Runs that wait for a slot.", &[("sum(sandglass_queue_depth{@})", "waiting")]),
    number(
        "Busy slots",
        "percentunit",
        "At 100 % runs begin to wait.",
        &[(r#"sum(sandglass_slots{state="busy",@}) / sum(sandglass_slots{@})"#, "busy")],
    ),
    number(
        "Ready",
        "short",
        "Servers that take work.",
        &[("sum(sandglass_ready{@})", "ready"), ("count(sandglass_ready{@})", "of")],
    ),
    number(
        "Version",
        "short",
        "How many servers run which version.",
        &[("sum by (version, commit) (sandglass_build_info{@})", "{{version}} {{commit}}")],
    ),
    Panel {
        title: "From request to reply",
        about: "POST /runs, the program's own time included.",
        kind: Kind::Lines,
        unit: "s",
        width: 24,
        queries: &[
            (
                r#"histogram_quantile(0.5, sum by (le) (rate(sandglass_http_request_duration_seconds_bucket{route="/runs",method="POST",@}[$__rate_interval])))"#,
                "p50",
            ),
            (
                r#"histogram_quantile(0.95, sum by (le) (rate(sandglass_http_request_duration_seconds_bucket{route="/runs",method="POST",@}[$__rate_interval])))"#,
                "p95",
            ),
            (
                r#"histogram_quantile(0.99, sum by (le) (rate(sandglass_http_request_duration_seconds_bucket{route="/runs",method="POST",@}[$__rate_interval])))"#,
                "p99",
            ),
        ],
    },
];

const REQUESTS: &[Panel] = &[
    stacked(
        "Requests by route",
        "reqps",
        "Templates, not addresses; `other` is what no call offers.",
        &[(
            "sum by (route, method) (rate(sandglass_http_requests_total{@}[$__rate_interval]))",
            "{{method}} {{route}}",
        )],
    ),
    stacked(
        "Errors",
        "reqps",
        "4xx is what clients did wrong, 5xx what we did, aborted who went away first.",
        &[(
            r#"sum by (status) (rate(sandglass_http_requests_total{status=~"4xx|5xx|aborted",@}[$__rate_interval]))"#,
            "{{status}}",
        )],
    ),
    heatmap(
        "Latency of POST /runs",
        "From a request's headers to its reply.",
        &[(
            r#"sum by (le) (increase(sandglass_http_request_duration_seconds_bucket{route="/runs",method="POST",@}[$__rate_interval]))"#,
            "{{le}}",
        )],
    ),
    heatmap(
        "Latency of all other calls",
        "These should never wait for anything.",
        &[(
            r#"sum by (le) (increase(sandglass_http_request_duration_seconds_bucket{route!="/runs",@}[$__rate_interval]))"#,
            "{{le}}",
        )],
    ),
    stacked(
        "TLS",
        "reqps",
        "Handshakes that ended; without TLS there are none.",
        &[("sum by (result) (rate(sandglass_tls_handshakes_total{@}[$__rate_interval]))", "{{result}}")],
    ),
    lines(
        "Certificate",
        "s",
        "How long it is still good; 0 without TLS. Two weeks before its end an alert fires.",
        &[(
            "(sandglass_tls_certificate_expires_timestamp_seconds{@} > bool 0) * (sandglass_tls_certificate_expires_timestamp_seconds{@} - time())",
            "{{instance}}",
        )],
    ),
];

const OUTCOMES: &[Panel] = &[
    stacked(
        "Runs by outcome",
        "reqps",
        "What programs did: none of it is an error of ours.",
        &[(
            r#"sum by (outcome) (rate(sandglass_runs_total{outcome!="sandbox_error",@}[$__rate_interval]))"#,
            "{{outcome}}",
        )],
    ),
    stacked(
        "sandbox_error",
        "percentunit",
        "Our own fault, with an objective of its own: fewer than one in a thousand.",
        &[(
            r#"sum by (instance) (rate(sandglass_runs_total{outcome="sandbox_error",@}[$__rate_interval])) / sum by (instance) (rate(sandglass_runs_total{@}[$__rate_interval]))"#,
            "{{instance}}",
        )],
    ),
];

const ANATOMY: &[Panel] = &[
    lines(
        "Queue wait",
        "s",
        "From submission to a slot.",
        &[
            (
                "histogram_quantile(0.5, sum by (le) (rate(sandglass_run_queue_wait_seconds_bucket{@}[$__rate_interval])))",
                "p50",
            ),
            (
                "histogram_quantile(0.95, sum by (le) (rate(sandglass_run_queue_wait_seconds_bucket{@}[$__rate_interval])))",
                "p95",
            ),
        ],
    ),
    lines(
        "Start-up by phase, image here",
        "s",
        "p95 from a slot to the program's start.",
        &[(
            r#"histogram_quantile(0.95, sum by (phase, le) (rate(sandglass_run_startup_seconds_bucket{cache="hit",@}[$__rate_interval])))"#,
            "{{phase}}",
        )],
    ),
    lines(
        "Start-up by phase, image fetched",
        "s",
        "p95 where the image had to be pulled first.",
        &[(
            r#"histogram_quantile(0.95, sum by (phase, le) (rate(sandglass_run_startup_seconds_bucket{cache="miss",@}[$__rate_interval])))"#,
            "{{phase}}",
        )],
    ),
    lines(
        "Program time",
        "s",
        "p95 of the programs' wall time, by outcome.",
        &[(
            "histogram_quantile(0.95, sum by (outcome, le) (rate(sandglass_run_duration_seconds_bucket{@}[$__rate_interval])))",
            "{{outcome}}",
        )],
    ),
    lines(
        "Past the limit",
        "s",
        "p95 from a time limit to the death of the last process.",
        &[(
            "histogram_quantile(0.95, sum by (limit, le) (rate(sandglass_run_limit_overshoot_seconds_bucket{@}[$__rate_interval])))",
            "{{limit}}",
        )],
    ),
    lines(
        "Prepared ahead",
        "percentunit",
        "Runs that found a sandbox which was prepared before they came. Few: raise `prepared_max`.",
        &[(
            "sum(rate(sandglass_sandbox_pool_hits_total{@}[$__rate_interval])) / (sum(rate(sandglass_sandbox_pool_hits_total{@}[$__rate_interval])) + sum(rate(sandglass_sandbox_pool_misses_total{@}[$__rate_interval])))",
            "hits",
        )],
    ),
    lines(
        "Teardown",
        "s",
        "p95 from a run's end to its last trace. Nobody waits for it but the slot.",
        &[(
            "histogram_quantile(0.95, sum by (le) (rate(sandglass_run_teardown_seconds_bucket{@}[$__rate_interval])))",
            "p95",
        )],
    ),
];

const SATURATION: &[Panel] = &[
    lines(
        "Slots",
        "short",
        "The right to have one sandbox running.",
        &[("sum by (state) (sandglass_slots{@})", "{{state}}")],
    ),
    lines(
        "Disk of the data directory",
        "percentunit",
        "Images share it with whatever else lies there.",
        &[("1 - sandglass_data_disk_free_bytes{@} / sandglass_data_disk_bytes{@}", "{{instance}} used")],
    ),
    lines(
        "Inodes of the data directory",
        "short",
        "How many more files it can have; a file system without a bound says 0 of 0.",
        &[("sandglass_data_disk_free_inodes{@}", "{{instance}} left")],
    ),
    lines(
        "Memory and descriptors of the server",
        "short",
        "The server itself, without its runs.",
        &[
            ("process_resident_memory_bytes{@}", "{{instance}} bytes"),
            ("process_open_fds{@}", "{{instance}} descriptors"),
        ],
    ),
    lines(
        "Processors of the machine",
        "percentunit",
        "From node-exporter: busy, and how much of the time somebody waited for a processor.",
        &[
            (r#"1 - avg(rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))"#, "busy"),
            ("avg(rate(node_pressure_cpu_waiting_seconds_total[$__rate_interval]))", "pressure"),
        ],
    ),
    lines(
        "Memory of the machine",
        "percentunit",
        "From node-exporter: used, and how much of the time somebody waited for memory.",
        &[
            ("1 - avg(node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)", "used"),
            ("avg(rate(node_pressure_memory_waiting_seconds_total[$__rate_interval]))", "pressure"),
        ],
    ),
];

const QUEUE: &[Panel] = &[
    lines(
        "Depth against capacity",
        "short",
        "At capacity, runs are turned away.",
        &[("sum(sandglass_queue_depth{@})", "waiting"), ("sum(sandglass_queue_capacity{@})", "capacity")],
    ),
    lines(
        "Age of the oldest",
        "s",
        "A queue that moves is demand; one that stands is something that hangs.",
        &[("max(sandglass_queue_oldest_age_seconds{@})", "oldest")],
    ),
    lines(
        "Turned away",
        "reqps",
        "By reason.",
        &[("sum by (reason) (rate(sandglass_rejected_total{@}[$__rate_interval]))", "{{reason}}")],
    ),
];

const IMAGES: &[Panel] = &[
    lines(
        "Here when asked for",
        "percentunit",
        "Runs whose image was in the store.",
        &[(
            "sum(rate(sandglass_image_cache_hits_total{@}[$__rate_interval])) / (sum(rate(sandglass_image_cache_hits_total{@}[$__rate_interval])) + sum(rate(sandglass_image_cache_misses_total{@}[$__rate_interval])))",
            "hits",
        )],
    ),
    lines(
        "Pulls by result",
        "reqps",
        "`refused` is a wrong name; `registry`, `timeout` and `internal` are failures.",
        &[("sum by (result) (rate(sandglass_image_pulls_total{@}[$__rate_interval]))", "{{result}}")],
    ),
    lines(
        "Pull time",
        "s",
        "p95 of pulls that succeeded, and of unpacking one layer.",
        &[
            (
                r#"histogram_quantile(0.95, sum by (le) (rate(sandglass_image_pull_seconds_bucket{result="ok",@}[$__rate_interval])))"#,
                "pull",
            ),
            (
                "histogram_quantile(0.95, sum by (le) (rate(sandglass_image_unpack_seconds_bucket{@}[$__rate_interval])))",
                "unpack a layer",
            ),
        ],
    ),
    lines(
        "Store",
        "bytes",
        "Unpacked layers, each counted once, and uploaded files.",
        &[
            ("sandglass_image_cache_bytes{@}", "{{instance}} images"),
            ("sandglass_image_cache_limit_bytes{@}", "{{instance}} collected above"),
            ("sandglass_files_bytes{@}", "{{instance}} files"),
        ],
    ),
    lines(
        "Downloaded",
        "Bps",
        "Compressed bytes from registries.",
        &[("sum(rate(sandglass_image_pull_bytes_total{@}[$__rate_interval]))", "bytes/s")],
    ),
    lines(
        "Dropped and shared",
        "short",
        "Images that were dropped, and requests that joined a pull under way, in five minutes.",
        &[
            (
                "sum by (reason) (increase(sandglass_image_cache_evictions_total{@}[5m]))",
                "dropped: {{reason}}",
            ),
            ("sum(increase(sandglass_image_pulls_coalesced_total{@}[5m]))", "joined"),
        ],
    ),
];

const LEAKS: &[Panel] = &[
    stacked(
        "Sandboxes against control groups",
        "short",
        "The two should go together.",
        &[
            ("sum by (state) (sandglass_sandboxes{@})", "sandboxes {{state}}"),
            ("sum(sandglass_cgroups_live{@})", "control groups"),
        ],
    ),
    stacked(
        "Left behind",
        "short",
        "Mounts in the launcher's namespace, and runs of dead servers that a start has removed.",
        &[
            ("sum by (instance) (sandglass_mounts_live{@})", "{{instance}} mounts"),
            ("sum by (instance) (sandglass_orphans_reaped_total{@})", "{{instance}} orphans"),
        ],
    ),
    lines(
        "Lines of the log that were lost",
        "short",
        "In five minutes, because nobody read them in time; of the audit, or others.",
        &[("sum by (kind) (increase(sandglass_log_lines_dropped_total{@}[5m]))", "{{kind}}")],
    ),
];
