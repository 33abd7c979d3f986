//! Doors for the fuzzer: what strangers' bytes go through first.

use crate::config::Platform;
use crate::reference::Reference;
use crate::{manifest, token};

/// Reads a name; one that is good is shown in a way that means the same.
pub fn reference(text: &str) {
    let Ok(parsed) = Reference::parse(text) else { return };
    let shown = parsed.to_string();
    let again = Reference::parse(&shown).unwrap_or_else(|error| panic!("{text:?} is {shown:?}: {error}"));
    assert_eq!(parsed, again, "{text:?} is {shown:?}");
    for part in [&parsed.registry, &parsed.repository, parsed.wanted()] {
        assert!(
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic()),
            "{text:?} has {part:?}"
        );
    }
    let names = parsed.repository.split('/').chain([parsed.wanted()]);
    for name in names {
        assert!(!["", ".", ".."].contains(&name), "{text:?} leads elsewhere");
    }
}

/// Reads whatever a registry may send; what leads on is a digest.
pub fn document(bytes: &[u8]) {
    let platform = Platform::default();
    match manifest::read(bytes, None) {
        Ok(manifest::Document::Image(image)) => {
            if let Ok((config, layers)) = manifest::blobs(&image) {
                for blob in layers.iter().chain([&config]) {
                    assert!(crate::digest::is_digest(&blob.digest), "{:?}", blob.digest);
                }
            }
        }
        Ok(manifest::Document::Index(index)) => drop(manifest::choose(&index, &platform).is_ok()),
        Err(reason) => assert!(!reason.is_empty()),
    }
    if let Ok(described) = manifest::read_config(bytes, &platform) {
        for diff_id in &described.diff_ids {
            assert!(crate::digest::is_digest(diff_id), "{diff_id:?}");
        }
    }
    let _ = token::read_answer(bytes);
}
