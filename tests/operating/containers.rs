//! Compose files and the Helm chart, read by the tools that they are for.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Finished, Folder, Value, skip, target, tool};

use crate::{file, text};

/// Tools that come from elsewhere than Debian; `cargo xtask test` puts them there.
pub(crate) fn from_elsewhere(path: &str) -> Option<PathBuf> {
    let program = target().join(path);
    program.is_file().then_some(program)
}

#[test]
fn compose_takes_the_file_and_everything_that_it_mounts_is_there() {
    let folder = file("deploy/compose");
    let mut command = Command::new(tool("docker-compose"));
    let done = Finished::of(command.args(["-f", "compose.yml", "config"]).current_dir(&folder));
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    let source = text("deploy/compose/compose.yml");
    let mounted = source.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("- ");
        let path = line.strip_prefix("seccomp:").or_else(|| line.strip_suffix(":ro")?.split(':').next())?;
        path.starts_with('.').then(|| path.to_owned())
    });
    let mounted: Vec<_> = mounted.collect();
    assert!(mounted.len() >= 6, "{mounted:?}");
    for path in mounted {
        assert!(folder.join(&path).exists(), "compose.yml mounts {path}");
    }
    assert!(!source.contains("privileged:"), "never privileged");
    for line in source.lines().filter(|line| line.trim().starts_with("ports:")) {
        assert!(line.contains("127.0.0.1:"), "published beyond this machine: {line}");
    }
}

/// The same rules and jobs as elsewhere, with other names for the targets.
/// What `cargo xtask compose` tries is what a newcomer types.
#[test]
fn the_readme_has_a_dashboard_after_the_three_commands_that_are_tried() {
    let readme = text("README.md");
    let commands = readme.lines().filter_map(|line| Some(line.split_once("docker compose -f ")?.1));
    let file = "deploy/compose/compose.yml";
    let tried = ["build", "run --rm -T key)", "up -d"].map(|words| format!("{file} {words}"));
    assert_eq!(commands.collect::<Vec<_>>(), tried);
    assert!(readme.contains("<http://localhost:3000>"));
    assert!(text(file).contains("ports: [\"127.0.0.1:3000:3000\"]"));
}

#[test]
fn what_prometheus_reads_in_compose_is_what_it_reads_elsewhere() {
    let here = text("deploy/compose/prometheus.yml");
    let there = text("deploy/prometheus/prometheus.yml");
    let kept = |text: &str| {
        let wanted = |line: &&str| !line.trim_start().starts_with('#') && !line.contains("targets:");
        text.lines().filter(wanted).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(kept(&here), kept(&there));
    let folder = Folder::new();
    std::fs::copy(file("deploy/compose/prometheus.yml"), folder.join("prometheus.yml")).expect("copy");
    for name in ["recording.yml", "alerts.yml"] {
        std::fs::copy(file("deploy/prometheus").join(name), folder.join(name)).expect("copy");
    }
    let mut command = Command::new(tool("promtool"));
    let done = Finished::of(command.args(["check", "config", "prometheus.yml"]).current_dir(folder.path()));
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
}

fn render(helm: &Path, values: &[&str]) -> Finished {
    let mut command = Command::new(helm);
    command.args(["template", "sandglass"]).arg(file("deploy/k8s/sandglass"));
    command.args(["--namespace=sandglass", "--kube-version=1.34.0"]);
    command.args(values.iter().map(|value| format!("--set={value}")));
    Finished::of(&mut command)
}

/// Manifests as JSON, one for each document.
fn documents(validate: &Path, yaml: &str) -> Vec<Value> {
    let python = validate.parent().expect("a program is in a folder").join("python3");
    let script = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))";
    let done = Finished::with_input(Command::new(python).args(["-c", script]), yaml.as_bytes());
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[test]
fn the_chart_renders_what_kubernetes_schemas_accept_with_no_more_privilege_than_is_needed() {
    let (Some(helm), Some(validate)) =
        (from_elsewhere("tools/helm"), from_elsewhere("venv/bin/kubernetes-validate"))
    else {
        return skip("helm (built with Go 1.24 or newer) and kubernetes-validate are not there");
    };
    let lint = Finished::of(Command::new(&helm).arg("lint").arg(file("deploy/k8s/sandglass")));
    assert_eq!(lint.code(), Some(0), "{}", lint.stdout_text());
    let folder = Folder::new();
    for (kind, values) in [
        ("Deployment", &[][..]),
        ("DaemonSet", &["kind=DaemonSet", "data.hostPath=", "seccompProfile=", "tlsSecret=web"]),
    ] {
        let rendered = render(&helm, values);
        assert_eq!(rendered.code(), Some(0), "{}", rendered.stderr_text());
        let path = folder.join("rendered.yaml");
        std::fs::write(&path, &rendered.stdout).expect("write what was rendered");
        let mut command = Command::new(&validate);
        let done = Finished::of(command.args(["--strict", "-k", "1.34.0"]).arg(&path));
        assert_eq!(done.code(), Some(0), "{}{}", done.stdout_text(), done.stderr_text());
        let documents = documents(&validate, &rendered.stdout_text());
        let workload = documents.iter().find(|document| document["kind"] == kind).expect("a workload");
        let pod = &workload["spec"]["template"]["spec"];
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"], support::json!({ "add": ["SYS_ADMIN"] }));
        assert_eq!(security["privileged"], false);
        assert_eq!(pod["automountServiceAccountToken"], false);
        // Clients may hold every connection of the other port.
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(pod["containers"][0][probe]["httpGet"]["port"], "metrics", "{probe}");
        }
        // By the names of its Service it answers.
        let service = documents.iter().find(|document| document["kind"] == "Service").expect("a service");
        let name = service["metadata"]["name"].as_str().expect("a name");
        let words = pod["containers"][0]["args"].as_array().expect("words");
        let hosts =
            words.iter().find_map(|word| word.as_str()?.strip_prefix("--allowed-hosts=")).expect("names");
        let hosts: Vec<_> = hosts.split(',').collect();
        // TLS where there is a Secret for it, from files that the server can read.
        let volumes = pod["volumes"].as_array().expect("volumes");
        let secret = volumes.iter().find(|volume| volume["name"] == "tls").map(|volume| &volume["secret"]);
        let (at, mounts) = ("--tls-cert=/tls/tls.crt", &pod["containers"][0]["volumeMounts"]);
        let mounted = mounts.as_array().expect("mounts").iter().any(|mount| mount["mountPath"] == "/tls");
        let has_secret =
            secret.is_some_and(|secret| secret["secretName"] == "web" && secret["defaultMode"] == 0o444);
        let is_asked = kind == "DaemonSet";
        assert_eq!(
            (words.iter().any(|word| word == at), mounted, has_secret),
            (is_asked, is_asked, is_asked)
        );
        for end in ["", ".sandglass", ".sandglass.svc", ".sandglass.svc.cluster.local"] {
            assert!(hosts.contains(&&*format!("{name}{end}")), "{end}: {hosts:?}");
        }
        if kind == "Deployment" {
            // One pod on each node: one more could wait for a node for ever, and the old ones for it.
            assert!(
                pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                    .is_array()
            );
            let rolling = &workload["spec"]["strategy"]["rollingUpdate"];
            assert_eq!(
                (&rolling["maxSurge"], &rolling["maxUnavailable"]),
                (&support::json!(0), &support::json!(1))
            );
        }
        // As long as runs may take, what preStop takes, and the last answers.
        assert!(pod["terminationGracePeriodSeconds"].as_u64() >= Some(30 + 5 + 5));
        for kind in ["NetworkPolicy", "PodDisruptionBudget", "Service", "ConfigMap"] {
            assert!(documents.iter().any(|document| document["kind"] == kind), "no {kind}");
        }
    }
    let monitored = render(&helm, &["podMonitor.enabled=true"]).stdout_text();
    assert!(monitored.contains("kind: PodMonitor"));
    let wrong = render(&helm, &["kind=StatefulSet"]);
    assert!(wrong.stderr_text().contains("kind must be Deployment or DaemonSet"), "{}", wrong.stderr_text());
}

/// What the quick start says is what the image does.
#[test]
fn the_image_starts_as_its_tests_start_it() {
    let dockerfile = text("Dockerfile");
    for line in [
        "FROM scratch",
        "ENTRYPOINT [\"/usr/local/bin/sandglass\"]",
        "CMD [\"serve\", \"--listen=0.0.0.0:8080\"]",
        "VOLUME /var/lib/sandglass",
        "STOPSIGNAL SIGTERM",
    ] {
        assert!(dockerfile.lines().any(|found| found == line), "no line {line}");
    }
    assert!(!dockerfile.contains("privileged ") && !dockerfile.contains("--allow-open-network"));
}
