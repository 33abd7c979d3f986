//! Reading manifests, indexes and configs: documents of strangers that say which layers make an
//! image. Anything that could be read in two ways is refused.

use oci_client::manifest::{ImageIndexEntry, OciImageIndex, OciImageManifest};
use serde::Deserialize;

use crate::digest::is_digest;
use crate::{ImageConfig, Limits, Platform};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a registry is told that we can read.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug)]
pub(crate) enum Document {
    Index(OciImageIndex),
    Image(Box<OciImageManifest>),
}

/// The fields that tell the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde_json::Value>,
    layers: Option<serde_json::Value>,
    fs_layers: Option<serde_json::Value>,
}

/// `content_type` is what the registry calls it, which may not contradict what the document says.
pub(crate) fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Document, String> {
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest is broken: {error}"))?;
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(
            "its manifest is of Docker's schema 1, which nobody should use any more; push it anew".into()
        );
    }
    let kind = |media_type: &str| match media_type {
        OCI_INDEX | DOCKER_LIST => Some(true),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        _ => None,
    };
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let is_index = match (&shape.manifests, &shape.layers) {
        (Some(_), None) => true,
        (None, Some(_)) => false,
        _ => return Err("its manifest is neither an index nor an image".into()),
    };
    for said in content_type.into_iter().chain(shape.media_type.as_deref()) {
        if kind(said).is_some_and(|index| index != is_index) {
            return Err(format!("its manifest is called {said} and is something else"));
        }
    }
    if let (Some(said), Some(header)) = (&shape.media_type, content_type)
        && kind(header).is_some()
        && said != header
    {
        return Err(format!("its manifest is called {header} by the registry and {said} by itself"));
    }
    let broken = |error| format!("its manifest is broken: {error}");
    Ok(match is_index {
        true => Document::Index(serde_json::from_slice(bytes).map_err(broken)?),
        false => Document::Image(Box::new(serde_json::from_slice(bytes).map_err(broken)?)),
    })
}

/// The entry that suits this machine best; else the platforms that there are.
pub(crate) fn choose<'a>(index: &'a OciImageIndex, wanted: &Platform) -> Result<&'a ImageIndexEntry, String> {
    let entries = || index.manifests.iter().filter(|entry| is_image(entry));
    let best =
        entries().filter_map(|entry| Some((rank(entry, wanted)?, entry))).min_by_key(|(rank, _)| *rank);
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    let available: Vec<_> = entries().take(20).map(platform_name).collect();
    Err(if available.is_empty() { "nothing".into() } else { available.join(", ") })
}

/// Attestations and other artifacts stand in indexes too.
fn is_image(entry: &ImageIndexEntry) -> bool {
    let known = matches!(entry.media_type.as_str(), OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST);
    let unknown = entry.platform.as_ref().is_some_and(|platform| platform.os.to_string() == "unknown");
    known && !unknown && entry.artifact_type.is_none()
}

fn rank(entry: &ImageIndexEntry, wanted: &Platform) -> Option<u32> {
    // One that does not say what it is for is looked into last; its config will tell.
    let Some(platform) = &entry.platform else { return Some(1000) };
    let fits = platform.os.to_string() == "linux" && platform.architecture.to_string() == wanted.architecture;
    let variant = platform.variant.as_deref();
    fits.then(|| variant_rank(&wanted.architecture, variant, wanted.variant.as_deref()))?
}

/// How far a variant is from the wanted one; older ones run on newer machines.
fn variant_rank(architecture: &str, found: Option<&str>, wanted: Option<&str>) -> Option<u32> {
    let default = match architecture {
        "arm" => 7,
        "arm64" => 8,
        _ => 1,
    };
    let number = |variant: Option<&str>| match variant {
        None | Some("") => Some(default),
        Some(variant) => variant.strip_prefix('v')?.parse::<u32>().ok(),
    };
    if found == wanted {
        return Some(0);
    }
    number(wanted)?.checked_sub(number(found)?).map(|distance| distance + 1)
}

fn platform_name(entry: &ImageIndexEntry) -> String {
    match &entry.platform {
        None => "an unnamed platform".into(),
        Some(platform) => {
            let variant =
                platform.variant.as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
            format!("{}/{}{variant}", platform.os, platform.architecture)
        }
    }
}

/// A blob that an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// The config and the layers, the lowest first. Where else a layer could be had is not looked at.
pub(crate) fn blobs(manifest: &OciImageManifest) -> Result<(Blob, Vec<Blob>), String> {
    let config = &manifest.config;
    match config.media_type.as_str() {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {}
        other => return Err(format!("it is no image but an artifact: its config is {other}")),
    }
    for layer in &manifest.layers {
        if !is_layer(&layer.media_type) {
            return Err(format!("a layer is of a kind that can't be read: {}", layer.media_type));
        }
    }
    let blob = |digest: &str, size: i64| {
        let size = u64::try_from(size).ok().filter(|_| is_digest(digest));
        let size = size.ok_or_else(|| format!("its manifest names a blob {digest:.100?} that can't be"))?;
        Ok::<_, String>(Blob { digest: digest.into(), size })
    };
    let layers =
        manifest.layers.iter().map(|layer| blob(&layer.digest, layer.size)).collect::<Result<_, _>>()?;
    Ok((blob(&config.digest, config.size)?, layers))
}

fn is_layer(media_type: &str) -> bool {
    let bases = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let rest = bases.iter().find_map(|base| media_type.strip_prefix(base));
    matches!(rest, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

/// What a config says that matters here. All else is ignored: labels and hooks are nobody's orders.
#[derive(Debug, Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    config: Option<Execution>,
    rootfs: Layers,
}

#[derive(Debug, Deserialize)]
struct Layers {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) config: ImageConfig,
    /// The lowest first.
    pub(crate) diff_ids: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum BadConfig {
    Broken(String),
    /// Made for another machine.
    Platform(String),
}

pub(crate) fn read_config(bytes: &[u8], wanted: &Platform) -> Result<Described, BadConfig> {
    let document: ConfigDocument = serde_json::from_slice(bytes)
        .map_err(|error| BadConfig::Broken(format!("its config is broken: {error}")))?;
    let fits = matches!(document.os.as_str(), "linux" | "")
        && (document.architecture.is_empty() || document.architecture == wanted.architecture)
        && variant_rank(&wanted.architecture, document.variant.as_deref(), wanted.variant.as_deref())
            .is_some();
    if !fits {
        let variant = document.variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        return Err(BadConfig::Platform(format!("{}/{}{variant}", document.os, document.architecture)));
    }
    if let Some(bad) = document.rootfs.diff_ids.iter().find(|diff_id| !is_digest(diff_id)) {
        return Err(BadConfig::Broken(format!("its config names a layer {bad:.100?} that can't be")));
    }
    let execution = document.config.unwrap_or_default();
    let has_nul = |word: &String| word.contains('\0');
    let words = [&execution.cmd, &execution.entrypoint].into_iter().flatten().flatten();
    if words.chain(&execution.working_dir).chain(&execution.user).any(has_nul) {
        return Err(BadConfig::Broken("its config has a NUL in a word".into()));
    }
    let is_variable = |entry: &String| entry.find('=').is_some_and(|at| at > 0) && !has_nul(entry);
    let config = ImageConfig {
        env: execution.env.unwrap_or_default().into_iter().filter(is_variable).collect(),
        workdir: execution.working_dir.unwrap_or_default(),
        user: execution.user.unwrap_or_default(),
        entrypoint: execution.entrypoint.unwrap_or_default(),
        cmd: execution.cmd.unwrap_or_default(),
    };
    Ok(Described { config, diff_ids: document.rootfs.diff_ids })
}

/// The first limit that the image's claims about itself go past.
pub(crate) fn over_limit(config: &Blob, layers: &[Blob], limits: &Limits) -> Option<(&'static str, u64)> {
    if config.size > limits.config_bytes {
        return Some(("bytes in its config", limits.config_bytes));
    }
    if layers.len() as u64 > limits.layers {
        return Some(("layers", limits.layers));
    }
    if layers.iter().any(|layer| layer.size > limits.layer_bytes) {
        return Some(("bytes in a layer", limits.layer_bytes));
    }
    // Room is made for what is claimed before a byte of it is here.
    let all = layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    (all > limits.image_bytes).then_some(("bytes", limits.image_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> String {
        let (digest, parts) = ("a".repeat(64), platform.split('/').collect::<Vec<_>>());
        let variant = parts.get(2).map(|variant| format!(r#","variant":"{variant}""#)).unwrap_or_default();
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{digest}","size":1,
                "platform":{{"os":"{}","architecture":"{}"{variant}}}}}"#,
            parts[0], parts[1]
        )
    }

    fn chosen(platforms: &[&str], architecture: &str, variant: Option<&str>) -> Result<String, String> {
        let entries: Vec<_> = platforms.iter().map(|platform| entry(platform)).collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Document::Index(index) = read(text.as_bytes(), Some(OCI_INDEX)).unwrap() else {
            panic!("{text}")
        };
        let wanted = Platform { architecture: architecture.into(), variant: variant.map(Into::into) };
        choose(&index, &wanted).map(platform_name)
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let all = [
            "unknown/unknown",
            "windows/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64",
            "linux/386",
        ];
        assert_eq!(chosen(&all, "amd64", None).unwrap(), "linux/amd64");
        assert_eq!(chosen(&all, "arm64", Some("v8")).unwrap(), "linux/arm64/v8");
        assert_eq!(chosen(&all, "arm", Some("v7")).unwrap(), "linux/arm/v7");
        assert_eq!(chosen(&["linux/arm/v5", "linux/arm/v6"], "arm", Some("v7")).unwrap(), "linux/arm/v6");
        assert_eq!(chosen(&["linux/arm64"], "arm64", Some("v8")).unwrap(), "linux/arm64");
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"], "amd64", None).unwrap(), "linux/amd64");
        assert_eq!(chosen(&["linux/amd64/v3"], "amd64", None).unwrap_err(), "linux/amd64/v3");
        assert_eq!(chosen(&all[..2], "amd64", None).unwrap_err(), "windows/amd64");
        assert_eq!(chosen(&[], "amd64", None).unwrap_err(), "nothing");
    }

    #[test]
    fn documents_that_can_be_read_in_two_ways_are_refused() {
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        let neither = r#"{"schemaVersion":2}"#;
        let old = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in [both, neither, old, &lying, twice, &deep, "", "[]", "null"] {
            assert!(read(bad.as_bytes(), None).is_err(), "{bad:.80}");
        }
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(read(index.as_bytes(), Some(OCI_MANIFEST)).is_err());
        assert!(read(index.as_bytes(), Some("application/json; charset=utf-8")).is_ok());
        let docker = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
        assert!(read(docker.as_bytes(), Some(OCI_INDEX)).is_err());
    }

    #[test]
    fn a_config_says_how_to_run_and_for_which_machine() {
        let wanted = Platform { architecture: "amd64".into(), variant: None };
        let text = r#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]},"config":{
            "Env":["A=b","=x","none","C="],"Cmd":null,"Entrypoint":["e"],"User":"1:2","Labels":{"x":"y"},"Volumes":{"/":{}}}}"#;
        let config = read_config(text.as_bytes(), &wanted).unwrap().config;
        assert_eq!(config.env, ["A=b", "C="]);
        assert_eq!((config.entrypoint, config.cmd, config.user), (vec!["e".into()], vec![], "1:2".into()));
        for (os, architecture) in [("windows", "amd64"), ("linux", "arm64"), ("darwin", "amd64")] {
            let text =
                format!(r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"diff_ids":[]}}}}"#);
            assert!(matches!(read_config(text.as_bytes(), &wanted), Err(BadConfig::Platform(_))));
        }
        for bad in [
            r#"{"os":"linux","rootfs":{"diff_ids":["sha256:../.."]}}"#,
            r#"{"os":"linux","rootfs":{"diff_ids":[]},"config":{"Cmd":[1]}}"#,
            r#"{"os":"linux","rootfs":{"diff_ids":[]},"config":{"User":"a\u0000b"}}"#,
            r#"{}"#,
            r#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]},"os":"linux"}"#,
        ] {
            assert!(matches!(read_config(bad.as_bytes(), &wanted), Err(BadConfig::Broken(_))), "{bad}");
        }
    }
}
