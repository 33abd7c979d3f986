//! The compose files brought up for real, with the image that the Dockerfile makes. Prometheus, its exporter and
//! the registry are Debian's programs in images of the names that the file has; Grafana is in no registry that tests
//! may ask, and is left out. It takes as long as Prometheus takes to look, and so is `cargo xtask compose`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use support::{Docker, Finished, Folder, Image, Registry, Request, json, repository, tool, within};

const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const PROMETHEUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);

const REGISTRY: &str =
    "version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: ':5000'}\n";

struct Compose<'a> {
    docker: &'a Docker,
    folder: Folder,
}

impl Compose<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let client = self.docker.command();
        let mut command = Command::new(tool("docker-compose"));
        command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .current_dir(repository().join("deploy/compose"))
            .args(["--project-name=tested", "--file=compose.yml"]);
        command.arg(format!("--file={}", self.folder.join("tests.yml").display())).args(words);
        command
    }

    fn call(&self, words: &[&str]) -> String {
        let done = Finished::of(&mut self.command(words));
        assert_eq!(done.code(), Some(0), "{words:?}: {}", done.stderr_text());
        done.stdout_text()
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", Finished::of(&mut self.command(&["logs", "--no-color"])).stdout_text());
        }
        Finished::of(&mut self.command(&["down", "--timeout=20", "--volumes"]));
    }
}

/// The images that the file names, but for Grafana's.
fn import_images(docker: &Docker) {
    docker.import_program(
        "prom/prometheus:v3.5.0",
        "prometheus",
        "/bin/prometheus",
        &[
            "ENTRYPOINT [\"/bin/prometheus\"]",
            "CMD [\"--config.file=/etc/prometheus/prometheus.yml\", \"--storage.tsdb.path=/prometheus\"]",
        ],
    );
    let entry = "ENTRYPOINT [\"/bin/node_exporter\"]";
    docker.import_program(
        "prom/node-exporter:v1.9.1",
        "prometheus-node-exporter",
        "/bin/node_exporter",
        &[entry],
    );
    let start = ["ENTRYPOINT [\"/bin/registry\"]", "CMD [\"serve\", \"/etc/docker/registry/config.yml\"]"];
    docker.import_program("registry:2", "docker-registry", "/bin/registry", &start);
}

/// In place of Docker Hub the mirror has a registry of ours to ask, and nobody gets more descriptors than there are
/// here; all else is as it is shipped.
fn with_a_hub_of_our_own(storage: &Path, config: &Path) -> String {
    let (storage, config) = (storage.display(), config.display());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("ask for a limit");
    let descriptors = most.min(131_072);
    format!(
        "version: '3.8'\nservices:\n  hub:\n    image: registry:2\n    volumes: ['{storage}:/var/lib/registry', \
         '{config}:/etc/docker/registry/config.yml:ro']\n  mirror:\n    volumes: \
         ['{config}:/etc/docker/registry/config.yml:ro']\n    environment:\n      \
         REGISTRY_PROXY_REMOTEURL: http://hub:5000\n  sandglass:\n    ulimits: {{ nofile: {descriptors} }}\n"
    )
}

fn ask_prometheus(query: &str) -> Option<f64> {
    let request = Request::new(PROMETHEUS, "GET", &format!("/api/v1/query?query={query}"));
    let answer = request.try_send().ok().filter(|answer| answer.status == 200)?.json();
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

/// The three commands of the quick start, but for building the image, which is done.
#[test]
fn compose_brings_up_a_service_that_is_watched_and_pulls_through_its_mirror() {
    let folder = Folder::new();
    let (storage, config) = (folder.join("hub"), folder.join("registry.yml"));
    std::fs::create_dir(&storage).expect("make a folder");
    std::fs::write(&config, REGISTRY).expect("write a configuration");
    Registry::on(&storage).push("library/busybox", "latest", &Image::busybox());
    let docker = Docker::with_networks();
    import_images(&docker);
    std::fs::write(folder.join("tests.yml"), with_a_hub_of_our_own(&storage, &config)).expect("write a file");
    let compose = Compose { docker: &docker, folder };

    let key = compose.call(&["run", "--rm", "key"]);
    let key = key.trim();
    compose.call(&["up", "--detach", "--no-build", "hub", "mirror", "sandglass", "prometheus", "node"]);
    docker.in_its_network(|| {
        within(Duration::from_secs(60), "a service that is ready", || {
            let asked = Request::new(SERVICE, "GET", "/readyz").try_send();
            asked.is_ok_and(|answer| answer.status == 200).then_some(())
        });
        let body = json!({ "image": "busybox", "cmd": "echo", "args": ["hello"] });
        assert_eq!(Request::new(SERVICE, "POST", "/runs").json(&body).send().status, 401);
        let run = Request::new(SERVICE, "POST", "/runs").json(&body).key(key).send().expect(200);
        assert_eq!(run["stdout"], "hello\n", "{run}");
        let greedy = json!({
            "image": "busybox", "cmd": "tail", "args": ["/dev/zero"], "limits": { "memory_bytes": 16 << 20 },
        });
        let run = Request::new(SERVICE, "POST", "/runs").json(&greedy).key(key).send().expect(200);
        assert_eq!(run["outcome"], "memory_limit", "{run}");
        for (query, least) in [
            ("up{job=%22sandglass%22}", 1.0),
            ("up{job=%22node%22}", 1.0),
            ("sum(sandglass_runs_total)", 2.0),
            ("sandglass_ready", 1.0),
        ] {
            within(Duration::from_secs(90), &format!("Prometheus to see {query}"), || {
                ask_prometheus(query).filter(|value| *value >= least)
            });
        }
    });
}
