//! Docker Hub's protocol, all of it at once.

use support::hub::{AUTH, CDN, REGISTRY};
use support::{Folder, Hub, Image, Layer, Registry, json};

#[test]
fn an_image_is_pulled_from_docker_hub_as_docker_hub_wants_it() {
    let registry = Registry::start();
    let layers = (0..4).map(|at| {
        Layer::build(|tar| {
            tar.file(&format!("layer-{at}"), at.to_string());
        })
    });
    registry.push("library/busybox", "latest", &layers.fold(Image::busybox(), Image::layer));
    let (hub, login) = (Hub::before(&registry), Folder::new());
    let config = login.join("config");
    std::fs::write(&config, Hub::docker_config().to_string()).expect("write a docker config");
    let daemon = hub.daemon().flag("--docker-config", config.display()).start();

    // No registry, no `library/`, no tag.
    let body = |pull: &str| json!({ "image": "busybox", "cmd": "cat", "args": ["/layer-3"], "pull": pull });
    let run = daemon.run(&body("missing"));
    assert_eq!((run["stdout"].as_str(), run["outcome"].as_str()), (Some("3"), Some("exited")), "{run:#}");
    assert_eq!(run["image"]["reference"], "docker.io/library/busybox:latest");

    let asked = hub.asked();
    let of = |host: &str| asked.iter().filter(|asking| asking.host == host).collect::<Vec<_>>();
    // The first token was good for three requests, so there were several, each for this repository and by the
    // password, which nobody but the token server has seen.
    let (tokens, blobs) = (of(AUTH), of(CDN));
    assert!(tokens.len() >= 2, "{asked:#?}");
    for token in &tokens {
        let scope = "scope=repository%3Alibrary%2Fbusybox%3Apull";
        assert!(token.path.contains(scope) && token.path.contains("service=registry.docker.io"), "{token:?}");
    }
    assert!(of(REGISTRY).iter().all(|asking| asking.path.starts_with("/v2/library/busybox/")), "{asked:#?}");
    let has_password = |asking: &&support::hub::Asking| asking.authorization.starts_with("Basic");
    assert!(asked.iter().filter(has_password).all(|asking| asking.host == AUTH), "{asked:#?}");
    // Five layers and the config, each once, from another host that was shown nothing.
    assert_eq!(blobs.len(), 6, "{asked:#?}");
    assert!(blobs.iter().all(|asking| asking.authorization.is_empty()), "{asked:#?}");
    // It said 429 once and was asked again when it wanted to be.
    assert_eq!(daemon.metric("sandglass_image_registry_retries_total{reason=\"rate_limit\"}"), 1.0);

    // What has not changed costs one HEAD, which Docker Hub does not count as a pull.
    let before = hub.asked().len();
    daemon.run(&body("always"));
    let asked = hub.asked().split_off(before);
    let asked: Vec<_> = asked.iter().filter(|asking| asking.host == REGISTRY).collect();
    assert!(asked.iter().all(|asking| asking.method == "HEAD"), "{asked:#?}");
    let succeeded = asked.len() - usize::from(asked.len() == 2);
    assert_eq!(succeeded, 1, "{asked:#?}");
    let log = daemon.log();
    assert!(!log.contains("signature=secret") && !log.contains("token-1"), "{log}");
}
