//! The records of a PAX header: `length key=value\n`, cut by their lengths and by nothing else.

/// Records in the order in which they stand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Adds what a header holds. Later records win over earlier ones.
    pub(crate) fn add(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        while !data.is_empty() {
            let (record, rest) = cut(data)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("a PAX record has no key")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err("a PAX record has a bad key");
            }
            self.0.push((key.to_vec(), value.to_vec()));
            data = rest;
        }
        Ok(())
    }

    /// The last value; an empty one takes an earlier one back.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().rev().find(|(found, _)| found == key.as_bytes())?;
        Some(value.as_slice()).filter(|value| !value.is_empty())
    }

    /// Text without NUL: a path, say.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&[u8]>, &'static str> {
        match self.get(key) {
            Some(value) if value.contains(&0) => Err("a PAX record has a NUL where text belongs"),
            value => Ok(value),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, &'static str> {
        self.get(key).map(decimal).transpose()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

/// The first record without its length and its newline, and what follows it.
fn cut(data: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or("a PAX record has no length")?;
    let len = decimal(&data[..space])?;
    let len = usize::try_from(len).ok().filter(|len| (space + 2..=data.len()).contains(len));
    let len = len.ok_or("a PAX record has a wrong length")?;
    match &data[space + 1..len] {
        [record @ .., b'\n'] => Ok((record, &data[len..])),
        _ => Err("a PAX record has a wrong length"),
    }
}

pub(crate) fn decimal(digits: &[u8]) -> Result<u64, &'static str> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or("a PAX record has a bad number")
}

/// Seconds and nanoseconds since 1970, from something like `-1.25`.
pub(crate) fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    const BAD: &str = "a PAX record has a bad time";
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = i64::try_from(decimal(whole.as_bytes()).map_err(|_| BAD)?).map_err(|_| BAD)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD);
    }
    let nanos = format!("{fraction:0<9}")[..9].parse::<u32>().map_err(|_| BAD)?;
    match (negative, nanos) {
        (false, nanos) => Ok((whole, nanos)),
        (true, 0) => Ok((-whole, 0)),
        (true, nanos) => Ok((-whole - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let payload = [b" ", key, b"=", value, b"\n"].concat();
        let mut len = payload.len() + 1;
        while len != payload.len() + len.to_string().len() {
            len = payload.len() + len.to_string().len();
        }
        [len.to_string().as_bytes(), &payload].concat()
    }

    #[test]
    fn a_newline_in_a_value_is_part_of_the_value() {
        let mut records = Records::default();
        records.add(&[record(b"SCHILY.xattr.user.a", b"1\n2=\0"), record(b"path", b"x")].concat()).unwrap();
        assert_eq!(records.get("SCHILY.xattr.user.a"), Some(&b"1\n2=\0"[..]));
        assert_eq!(records.get("path"), Some(&b"x"[..]));
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            "x",
            "5 a=b",
            "6 a=b",
            "7 a=b\n",
            "3 \n",
            "0 a=b\n",
            "-6 a=b\n",
            "99999999999999999999 a=b\n",
            "5 ab\n",
            "5 =b\n",
        ] {
            assert!(Records::default().add(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_empty_value_takes_an_earlier_one_back() {
        let mut records = Records::default();
        records.add(&[record(b"path", b"x"), record(b"path", b"")].concat()).unwrap();
        assert_eq!(records.get("path"), None);
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, time_) in [
            ("0", (0, 0)),
            ("1.5", (1, 500_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("-3", (-3, 0)),
            ("1.1234567899", (1, 123_456_789)),
        ] {
            assert_eq!(time(text.as_bytes()), Ok(time_), "{text}");
        }
        for bad in ["", "x", "1.x", "--1", "+1", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in prop::collection::vec(("[a-zA-Z.]{1,30}", prop::collection::vec(any::<u8>(), 1..200)), 0..10)) {
            let bytes: Vec<u8> = pairs.iter().flat_map(|(key, value)| record(key.as_bytes(), value)).collect();
            let mut records = Records::default();
            records.add(&bytes).unwrap();
            let read: Vec<_> = records.all().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            let written: Vec<_> = pairs.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone())).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Records::default().add(&bytes);
            let _ = time(&bytes);
        }
    }
}
