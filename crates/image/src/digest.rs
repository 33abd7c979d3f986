//! Digests as names of bytes, and the check that the bytes are the ones named.

use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:…` or `sha512:…`, in lower-case hex and of the right length.
pub(crate) fn is_digest(text: &str) -> bool {
    hex_of(text).is_some()
}

/// The hex behind the algorithm. It is a safe file name, whoever wrote it.
pub(crate) fn hex_of(digest: &str) -> Option<&str> {
    let (algorithm, hex) = digest.split_once(':')?;
    let len = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        _ => return None,
    };
    let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (hex.len() == len && is_hex).then_some(hex)
}

/// Whether a layer can be called so: by the hex of its diff id, and the number of the copy where there are several.
pub(crate) fn names_a_layer(name: &str) -> bool {
    let hex = name.split_once('-').map_or(name, |(hex, _)| hex);
    ["sha256", "sha512"].iter().any(|algorithm| is_digest(&format!("{algorithm}:{hex}")))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", to_hex(&Sha256::digest(bytes)))
}

pub(crate) fn matches(digest: &str, bytes: &[u8]) -> bool {
    Hasher::for_digest(digest).is_some_and(|mut hasher| {
        hasher.update(bytes);
        hasher.finish() == digest
    })
}

pub(crate) enum Hasher {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Box::default())
    }

    pub(crate) fn for_digest(digest: &str) -> Option<Self> {
        hex_of(digest)?;
        Some(match digest.split_once(':')?.0 {
            "sha512" => Self::Sha512(Box::default()),
            _ => Self::Sha256(Box::default()),
        })
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => format!("sha256:{}", to_hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", to_hex(&hash.finalize())),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lower_case_digests_are_digests() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(hex_of(&format!("sha256:{hex}")), Some(hex.as_str()));
        assert!(is_digest(&format!("sha512:{hex}{hex}")));
        let (upper, short) = (hex.to_uppercase(), &hex[1..]);
        for bad in [
            format!("sha256:{upper}"),
            format!("sha256:{short}"),
            format!("sha512:{hex}"),
            format!("md5:{hex}"),
            hex.clone(),
            format!("sha256:../{}", &hex[3..]),
        ] {
            assert!(!is_digest(&bad), "{bad}");
        }
        assert!(matches(&sha256(b"x"), b"x") && !matches(&sha256(b"x"), b"y"));
    }
}
