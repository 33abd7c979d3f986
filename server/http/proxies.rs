//! Whose request this is: the peer's, or, where the peer is a proxy that the operator trusts, that of whom the
//! proxy names. Anybody can write such a header, so that of anybody else it says nothing.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use super::serve::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies that are believed, and in which header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    networks: Vec<IpNet>,
    unix: bool,
    /// One and no other: a proxy that writes one passes on the other as its client has sent it.
    standard: bool,
}

impl Proxies {
    /// `trusted` are networks, addresses, and `unix` for whoever may open the socket's file.
    pub fn parse(trusted: &[String], header: &str) -> anyhow::Result<Self> {
        let mut proxies = Self { standard: header.eq_ignore_ascii_case("forwarded"), ..Self::default() };
        if !proxies.standard && !header.eq_ignore_ascii_case(X_FORWARDED_FOR.as_str()) {
            bail!("proxy_header is {header:?}; it must be X-Forwarded-For or Forwarded");
        }
        for word in trusted {
            match word.as_str() {
                "unix" => proxies.unix = true,
                word => proxies.networks.push(network(word).with_context(|| {
                    format!("trusted_proxies has {word:?}; it must be like 10.0.0.0/8, 127.0.0.1 or unix")
                })?),
            }
        }
        Ok(proxies)
    }

    /// Whose request it is, as far as anybody knows whom we believe.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        if !self.trusts(peer) {
            return peer;
        }
        let mut named = peer;
        // Each proxy writes down its peer behind what others have written: the last is the nearest.
        for address in self.named(headers).iter().rev() {
            // What is no address, such as `unknown`, hides everything before it.
            let Some(address) = address else { return named };
            named = Peer::Ip(*address);
            if !self.trusts(named) {
                break;
            }
        }
        named
    }

    fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.networks.iter().any(|network| network.contains(&address)),
            Peer::Unix => self.unix,
        }
    }

    fn named(&self, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
        let name = if self.standard { header::FORWARDED } else { X_FORWARDED_FOR };
        let lines = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or_default());
        let all = lines.flat_map(|line| line.split(','));
        if self.standard { all.map(of_element).collect() } else { all.map(address).collect() }
    }
}

/// One element of `Forwarded` (RFC 7239): `for="[2001:db8::1]:4711";proto=https`.
fn of_element(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address(node.trim_matches('"'))
}

/// An address, perhaps with a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok().map(|address: IpAddr| address.to_canonical())
}

fn network(word: &str) -> anyhow::Result<IpNet> {
    Ok(if word.contains('/') { word.parse()? } else { IpNet::from(word.parse::<IpAddr>()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Peer {
        Peer::Ip(text.parse().unwrap())
    }

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (HeaderName::from_static(name), line.parse().unwrap())).collect()
    }

    #[test]
    fn only_proxies_that_are_trusted_speak_for_others() {
        let trusted = ["10.0.0.0/8".to_owned(), "::1".into(), "unix".into()];
        let proxies = Proxies::parse(&trusted, "X-Forwarded-For").unwrap();
        for (peer, lines, client) in [
            (ip("10.0.0.1"), &[][..], ip("10.0.0.1")),
            (ip("10.0.0.1"), &["192.0.2.7"], ip("192.0.2.7")),
            (ip("::1"), &["192.0.2.7"], ip("192.0.2.7")),
            (Peer::Unix, &["192.0.2.7"], ip("192.0.2.7")),
            // Not trusted: whatever it says.
            (ip("192.0.2.1"), &["192.0.2.7"], ip("192.0.2.1")),
            (ip("11.0.0.1"), &["10.0.0.2"], ip("11.0.0.1")),
            // What the client itself has written stands before what the proxies have.
            (ip("10.0.0.1"), &["1.2.3.4, 192.0.2.7"], ip("192.0.2.7")),
            (ip("10.0.0.1"), &["1.2.3.4", "192.0.2.7, 10.0.0.9"], ip("192.0.2.7")),
            (ip("10.0.0.1"), &["10.0.0.8, 10.0.0.9"], ip("10.0.0.8")),
            // Ports and version 6.
            (ip("10.0.0.1"), &["192.0.2.7:4711"], ip("192.0.2.7")),
            (ip("10.0.0.1"), &["2001:db8::1"], ip("2001:db8::1")),
            (ip("10.0.0.1"), &["[2001:db8::1]:4711"], ip("2001:db8::1")),
            (ip("10.0.0.1"), &["::ffff:192.0.2.7"], ip("192.0.2.7")),
            // What can't be read ends the chain.
            (ip("10.0.0.1"), &["1.2.3.4, unknown"], ip("10.0.0.1")),
            (ip("10.0.0.1"), &["1.2.3.4, , 10.0.0.9"], ip("10.0.0.9")),
        ] {
            assert_eq!(
                proxies.client(peer, &headers("x-forwarded-for", lines)),
                client,
                "{peer:?} {lines:?}"
            );
        }
        // The other header is one that the proxy passes on from anybody.
        let other = headers("forwarded", &["for=192.0.2.7"]);
        assert_eq!(proxies.client(ip("10.0.0.1"), &other), ip("10.0.0.1"));
    }

    #[test]
    fn the_header_of_the_standard_is_read_where_the_operator_says_so() {
        let proxies = Proxies::parse(&["10.0.0.1".into()], "Forwarded").unwrap();
        for (line, client) in [
            ("for=192.0.2.7", "192.0.2.7"),
            ("for=1.2.3.4;proto=http, For=\"192.0.2.7:4711\";by=10.0.0.1", "192.0.2.7"),
            ("proto=https;for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=1.2.3.4, for=_hidden", "10.0.0.1"),
            ("for=1.2.3.4, proto=https", "10.0.0.1"),
        ] {
            assert_eq!(proxies.client(ip("10.0.0.1"), &headers("forwarded", &[line])), ip(client), "{line}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        for word in ["10.0.0.0/33", "localhost", "", "10.0.0"] {
            let error = Proxies::parse(&[word.into()], "X-Forwarded-For").unwrap_err();
            assert!(error.to_string().contains(&format!("{word:?}")), "{error}");
        }
        assert!(Proxies::parse(&[], "X-Real-IP").unwrap_err().to_string().contains("proxy_header is"));
    }
}
