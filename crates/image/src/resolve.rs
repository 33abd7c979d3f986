//! From a name to the manifest for this machine: what registries and mirrors are asked, and whether what they
//! send is what it should be.

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use crate::ImageError;
use crate::digest;
use crate::manifest::{self, Document};
use crate::mirrors::FromMirror;
use crate::pull::Pull;
use crate::registry::Ask;
use crate::retry::Failure;

/// An index may lead to an index, and that one to an image.
const MOST_INDEXES: usize = 2;
const HEADER_DIGEST: &str = "docker-content-digest";

impl Pull {
    /// What the name leads to now, if the registry says so without sending it. A digest leads nowhere else, but
    /// whose own the image will be has not shown by knowing it that it may have what it means.
    pub(crate) async fn resolve(&self) -> Result<Option<String>, ImageError> {
        if let Some(digest) = self.image.digest.as_ref().filter(|_| self.view.owner.is_none()) {
            return Ok(Some(digest.clone()));
        }
        match self.head(self.image.wanted()).await {
            Ok(response) => Ok(header(&response, HEADER_DIGEST).filter(|digest| digest::is_digest(digest))),
            // Not every registry knows HEAD; what is wrong besides that, GET will tell.
            Err(ImageError::Registry { .. } | ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn head(&self, wanted: &str) -> Result<reqwest::Response, ImageError> {
        let ask = self.ask(Method::HEAD, wanted);
        let registries = &self.view.registries;
        registries.retrying(&self.image.registry, || registries.send(&ask)).await
    }

    /// The manifest for this machine, its digest, and the digest of what led there.
    pub(crate) async fn manifest(
        &self,
        resolved: Option<String>,
    ) -> Result<(String, String, Box<oci_client::manifest::OciImageManifest>), ImageError> {
        let mut wanted = resolved.unwrap_or_else(|| self.image.wanted().to_owned());
        let mut top = None;
        for _ in 0..=MOST_INDEXES {
            let (digest, document) = self.document(&wanted).await?;
            let top = top.get_or_insert_with(|| digest.clone());
            match document {
                Document::Image(manifest) => return Ok((top.clone(), digest, manifest)),
                Document::Index(index) => {
                    let chosen = manifest::choose(&index, &self.puller.config.platform);
                    let entry = chosen.map_err(|available| self.platform(available))?;
                    if !digest::is_digest(&entry.digest) {
                        return Err(self.bad("its index names a manifest that can't be".into()));
                    }
                    wanted.clone_from(&entry.digest);
                }
            }
        }
        Err(self.bad("its indexes lead to indexes without end".into()))
    }

    pub(crate) async fn document(&self, wanted: &str) -> Result<(String, Document), ImageError> {
        let registries = &self.view.registries;
        let ask = self.ask(Method::GET, wanted);
        let (digest, kind, body) =
            registries.retrying(&self.image.registry, || self.get_document(&ask, wanted)).await?;
        let document = manifest::read(&body, kind.as_deref()).map_err(|reason| self.bad(reason))?;
        Ok((digest, document))
    }

    /// Its digest, of which kind the registry says it is, and its bytes. A mirror that sends other bytes than
    /// it should is no better than one that fails; a registry that does has the last word.
    async fn get_document(
        &self,
        ask: &Ask<'_>,
        wanted: &str,
    ) -> Result<(String, Option<String>, Vec<u8>), Failure> {
        let (registries, limit) = (&self.view.registries, self.puller.config.limits.manifest_bytes);
        let response = registries.send(ask).await?;
        let (said, kind) = (header(&response, HEADER_DIGEST), header(&response, CONTENT_TYPE.as_str()));
        let mirror = FromMirror::of(&response);
        let body = registries.read(&self.image, response, limit, "bytes in its manifest").await?;
        let expected = if digest::is_digest(wanted) { Some(wanted.to_owned()) } else { said };
        let digest = match expected {
            None => digest::sha256(&body),
            Some(digest) if digest::matches(&digest, &body) || !walls::stands("manifest_digest") => digest,
            Some(digest) => {
                let error =
                    self.bad(format!("its manifest has other bytes than its digest {digest:.100} says"));
                let Some(mirror) = mirror else { return Err(error.into()) };
                registries.rest(&mirror);
                return Err(Failure::Passing { reason: "broken", after: None, error });
            }
        };
        Ok((digest, kind, body))
    }

    fn ask(&self, method: Method, wanted: &str) -> Ask<'_> {
        Ask {
            image: &self.image,
            method,
            path: format!("manifests/{wanted}"),
            accept: Some(manifest::ACCEPT),
            from_byte: 0,
        }
    }
}

fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}
