//! The names of files that clients have uploaded, or that runs have left behind.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PREFIX: &str = "sha256:";

/// A file's name is the SHA-256 of its content, so the same bytes have the same name for everybody
/// and a name can never come to mean something else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId([u8; 32]);

/// One principal's file. The same content of another principal is another file: knowing a name gives
/// nobody the right to what it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredFile {
    /// The principal's name.
    pub owner: String,
    pub id: FileId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `sha256:` and 64 lower-case hexadecimal digits")]
pub struct BadFileId;

impl FileId {
    pub fn of_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digits alone, as they make a good name for a file.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn from_hex(text: &str) -> Result<Self, BadFileId> {
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BadFileId);
        }
        let mut digest = [0; 32];
        for (place, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).map_err(|_| BadFileId)?;
        }
        Ok(Self(digest))
    }
}

impl FromStr for FileId {
    type Err = BadFileId;

    fn from_str(text: &str) -> Result<Self, BadFileId> {
        text.strip_prefix(PREFIX).ok_or(BadFileId).and_then(Self::from_hex)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for FileId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_one_spelling_only() {
        let hex = "0123456789abcdef".repeat(4);
        let id: FileId = format!("sha256:{hex}").parse().unwrap();
        assert_eq!((id.to_string(), id.hex()), (format!("sha256:{hex}"), hex.clone()));
        for bad in [
            "",
            "sha256:",
            &hex,
            &format!("sha512:{hex}"),
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:{hex}0"),
            &format!("sha256:{}", &hex[1..]),
            &format!("sha256:+{}", &hex[1..]),
            &format!("sha256:{}é", &hex[2..]),
            "sha256:../../../../../../etc/passwd",
        ] {
            assert_eq!(bad.parse::<FileId>(), Err(BadFileId), "{bad:?}");
        }
    }
}
