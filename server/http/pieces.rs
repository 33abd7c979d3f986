//! Outputs in the form in which JSON can carry them, piece by piece: text where the bytes are text, base64
//! where they are not, and never half a character.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use engine::{Piece, Watcher};
use run::{Encoding, OutputEncoding, Stream};
use serde::Serialize;

use super::reply::RunReply;

/// How much of an output is looked at, and held for one reader, at once.
pub const PIECE_BYTES: usize = 48 * 1024;

/// A character of UTF-8 has at most as many bytes.
const CHARACTER_BYTES: usize = 4;

/// What is said of one piece of an output.
#[derive(Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = OutputEvent)]
pub struct Said {
    /// Where in the output the piece begins, in bytes.
    pub offset: u64,
    /// The piece, where it is text. Exactly one of `text` and `base64` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The piece, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    #[serde(skip)]
    pub bytes: u64,
}

/// As much of a piece as can be said now; `None` where the rest of a character has yet to come.
pub fn say(offset: u64, piece: Piece, encoding: OutputEncoding) -> Option<Said> {
    let Piece { mut bytes, last } = piece;
    let text = match (encoding, std::str::from_utf8(&bytes)) {
        (OutputEncoding::Auto, Ok(_)) => bytes.len(),
        (OutputEncoding::Auto, Err(error)) => error.valid_up_to(),
        (OutputEncoding::Base64, _) => 0,
    };
    if text == 0 && encoding == OutputEncoding::Auto && !last {
        bytes.truncate(bytes.len() - open_tail(&bytes));
    }
    if text > 0 {
        bytes.truncate(text);
    }
    let length = bytes.len() as u64;
    let (text, base64) = match String::from_utf8(bytes) {
        Ok(text) if encoding == OutputEncoding::Auto => (Some(text), None),
        Ok(text) => (None, Some(BASE64_STANDARD.encode(text))),
        Err(error) => (None, Some(BASE64_STANDARD.encode(error.as_bytes()))),
    };
    (length > 0).then_some(Said { offset, text, base64, bytes: length })
}

/// How many bytes at the end begin a character that is not there as a whole.
fn open_tail(bytes: &[u8]) -> usize {
    let most = bytes.len().min(CHARACTER_BYTES - 1);
    let open = |tail: &usize| {
        let tail = &bytes[bytes.len() - tail..];
        std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=most).rev().find(open).unwrap_or(0)
}

/// A finished run's JSON, bit by bit, so that large outputs are not copied as a whole for each reader.
#[derive(Debug)]
pub struct RunJson {
    watcher: Watcher,
    /// What stands before the outputs, between them and behind them, each in turn.
    around: std::vec::IntoIter<String>,
    outputs: std::vec::IntoIter<(Stream, Encoding)>,
    reading: Option<(Stream, Encoding, u64)>,
    cut: bool,
}

impl RunJson {
    /// `None` where the JSON does not have the outputs where they belong, which would be our mistake.
    pub fn new(watcher: Watcher) -> Option<Self> {
        let run = watcher.run();
        let shapes = [Stream::Stdout, Stream::Stderr].map(|stream| watcher.shape(stream));
        let reply = RunReply::without_outputs(&run, shapes);
        let encodings = reply.encodings();
        let json = serde_json::to_string(&reply).ok()?;
        // A quotation mark inside a string is escaped: the first that stands so is the field.
        let (head, rest) = json.split_once("\"stdout\":\"\"")?;
        let (middle, tail) = rest.split_once("\"stderr\":\"\"")?;
        let around =
            [format!("{head}\"stdout\":\""), format!("\"{middle}\"stderr\":\""), format!("\"{tail}")];
        let outputs: Vec<_> = [Stream::Stdout, Stream::Stderr].into_iter().zip(encodings).collect();
        Some(Self {
            watcher,
            around: Vec::from(around).into_iter(),
            outputs: outputs.into_iter(),
            reading: None,
            cut: false,
        })
    }

    /// The run was forgotten in the middle of it: not all of an output was there.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn output(&mut self) -> Option<String> {
        let (stream, encoding, offset) = self.reading?;
        let Piece { mut bytes, last } = self.watcher.read(stream, offset, PIECE_BYTES);
        if encoding == Encoding::Utf8 && !last {
            bytes.truncate(bytes.len() - open_tail(&bytes));
        }
        let end = offset + bytes.len() as u64;
        self.cut |= last && end < self.watcher.extent(stream).bytes;
        self.reading = (!last).then_some((stream, encoding, end));
        Some(match encoding {
            Encoding::Base64 => BASE64_STANDARD.encode(bytes),
            Encoding::Utf8 => {
                let quoted = serde_json::to_string(&String::from_utf8_lossy(&bytes)).unwrap_or_default();
                let inside = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                inside.unwrap_or_default().to_owned()
            }
        })
    }
}

impl Iterator for RunJson {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.reading.is_some() {
            return self.output();
        }
        let around = self.around.next()?;
        self.reading = self.outputs.next().map(|(stream, encoding)| (stream, encoding, 0));
        Some(around)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8], last: bool, encoding: OutputEncoding) -> Option<(String, u64)> {
        let said = say(7, Piece { bytes: bytes.to_vec(), last }, encoding)?;
        assert_eq!(said.offset, 7);
        let text = said.text.map(|text| format!("text {text}"));
        Some((text.or(said.base64.map(|text| format!("base64 {text}"))).unwrap(), said.bytes))
    }

    #[test]
    fn half_a_character_is_held_back_and_what_is_no_text_is_base64() {
        use OutputEncoding::{Auto, Base64};
        let euro = "€".as_bytes();
        for (bytes, last, encoding, expected) in [
            (&b""[..], false, Auto, None),
            (b"", true, Auto, None),
            (b"ab\n", false, Auto, Some(("text ab\n", 3))),
            (b"ab", false, Base64, Some(("base64 YWI=", 2))),
            (b"\xe2\x82", false, Base64, Some(("base64 4oI=", 2))),
            (euro, false, Auto, Some(("text €", 3))),
            (&euro[..2], false, Auto, None),
            (&euro[..1], false, Auto, None),
            (&euro[..2], true, Auto, Some(("base64 4oI=", 2))),
            (b"a\xe2\x82", false, Auto, Some(("text a", 1))),
            (b"a\xff", false, Auto, Some(("text a", 1))),
            (b"\xffa", false, Auto, Some(("base64 /2E=", 2))),
            (b"\xff\xe2\x82", false, Auto, Some(("base64 /w==", 1))),
            (b"\xff\xe2\x82", true, Auto, Some(("base64 /+KC", 3))),
            (b"\xf0\x9f\x92", false, Auto, None),
            (b"\x82", false, Auto, Some(("base64 gg==", 1))),
        ] {
            let expected = expected.map(|(text, bytes)| (text.to_owned(), bytes));
            assert_eq!(said(bytes, last, encoding), expected, "{bytes:?} {last} {encoding:?}");
        }
    }
}
