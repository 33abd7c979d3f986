//! One blob as a stream of bytes that are the right ones once the stream has ended: counted and
//! hashed on the way, taken up again where a connection broke.

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode};

use crate::ImageError;
use crate::digest::Hasher;
use crate::manifest::Blob;
use crate::mirrors::FromMirror;
use crate::reference::Reference;
use crate::registry::{Ask, Registries, failed};
use crate::retry::{Backoff, Failure};

/// After this much a connection has been worth its while, and its failure is a first one again.
const PROGRESS_BYTES: u64 = 1 << 20;

pub(crate) struct Download<'a> {
    registries: &'a Registries,
    image: &'a Reference,
    blob: &'a Blob,
    hasher: Option<Hasher>,
    response: Option<Response>,
    pub(crate) received: u64,
    /// Of a response that starts over: bytes that were here before.
    skip: u64,
    backoff: Backoff,
    since_failure: u64,
}

impl<'a> Download<'a> {
    pub(crate) fn new(registries: &'a Registries, image: &'a Reference, blob: &'a Blob) -> Self {
        Self {
            registries,
            image,
            blob,
            hasher: Hasher::for_digest(&blob.digest),
            response: None,
            received: 0,
            skip: 0,
            backoff: Backoff::default(),
            since_failure: 0,
        }
    }

    /// The next bytes, or nothing once all were there and right.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            match self.attempt().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => return self.check().map(|()| None),
                Err(failure) => {
                    if let Some(response) = self.response.take() {
                        self.registries.let_down(&response);
                    }
                    if std::mem::take(&mut self.since_failure) >= PROGRESS_BYTES {
                        self.backoff.progress();
                    }
                    self.registries.pause(&self.image.registry, &mut self.backoff, failure).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.response.is_none() {
            if self.received == self.blob.size {
                return Ok(None);
            }
            self.response = Some(self.open().await?);
        }
        let response = self.response.as_mut().expect("it was just opened");
        let chunk = response.chunk().await.map_err(|error| self.registries.broken(self.image, &error))?;
        let Some(mut chunk) = chunk else {
            return if self.received == self.blob.size { Ok(None) } else { Err(self.cut_short()) };
        };
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let chunk = chunk.split_off(skipped as usize);
        self.received += chunk.len() as u64;
        self.since_failure += chunk.len() as u64;
        if self.received > self.blob.size {
            return Err(self.bad("is longer than its manifest says").into());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        Ok(Some(chunk))
    }

    async fn open(&mut self) -> Result<Response, Failure> {
        let ask = Ask {
            image: self.image,
            method: Method::GET,
            path: format!("blobs/{}", self.blob.digest),
            accept: None,
            from_byte: self.received,
        };
        let response = match self.registries.send(&ask).await {
            Err(Failure::Final(ImageError::NotFound { .. })) => {
                return Err(self.bad("is missing at its registry").into());
            }
            result => result?,
        };
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&response) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let error = failed(self.image, "it sends another part than was asked for");
                return Err(self.unlike(&response, error));
            }
            // It starts over.
            _ => self.received,
        };
        let expected = self.blob.size - self.received + self.skip;
        if response.content_length().is_some_and(|len| len != expected) {
            return Err(self.unlike(&response, self.bad("is not as long as its manifest says")));
        }
        Ok(response)
    }

    /// A mirror that has something else is no better than one that fails; a registry that does has the last word.
    fn unlike(&self, response: &Response, error: ImageError) -> Failure {
        let Some(mirror) = FromMirror::of(response) else { return error.into() };
        self.registries.rest(&mirror);
        Failure::Passing { reason: "broken", after: None, error }
    }

    fn continues(&self, response: &Response) -> bool {
        let expected =
            format!("bytes {}-{}/{}", self.received, self.blob.size.saturating_sub(1), self.blob.size);
        response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()) == Some(expected.as_str())
    }

    fn check(&mut self) -> Result<(), ImageError> {
        let found = self.hasher.take().map(Hasher::finish);
        if found.as_deref() == Some(self.blob.digest.as_str()) || !walls::stands("blob_digest") {
            Ok(())
        } else {
            // Whoever pulls it next gets it from somewhere else.
            if let Some(response) = self.response.take() {
                self.registries.let_down(&response);
            }
            Err(self.bad("has other bytes than its digest says"))
        }
    }

    fn cut_short(&self) -> Failure {
        Failure::Passing {
            reason: "broken",
            after: None,
            error: failed(self.image, "it sends less than it should"),
        }
    }

    fn bad(&self, what: &str) -> ImageError {
        let reason = format!("its blob {} {what}", self.blob.digest);
        ImageError::BadImage { reference: self.image.to_string(), reason }
    }
}
