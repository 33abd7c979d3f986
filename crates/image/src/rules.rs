//! Who may be talked to. Names in references, redirects and token realms all come from strangers, so
//! every address is public and every connection https unless the operator has named the host.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{Config, ImageError};

#[derive(Debug)]
pub(crate) struct Rules {
    /// May change while the server runs.
    allowed: RwLock<Option<Vec<String>>>,
    insecure: Vec<String>,
    private: Vec<String>,
}

/// How far a connection may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Public,
    /// The operator has named this host and port.
    Anywhere,
}

impl Rules {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            allowed: RwLock::new(config.allowed_registries.as_deref().map(lower)),
            insecure: lower(&config.insecure_registries),
            // Whoever was named as a mirror was named.
            private: lower(&config.private_registries)
                .into_iter()
                .chain(config.mirrors.iter().map(|mirror| mirror.host.clone()))
                .collect(),
        }
    }

    /// Allows these registries only, from now on; none named means any.
    pub(crate) fn allow(&self, registries: &[String]) {
        let allowed = Some(lower(registries)).filter(|names| !names.is_empty());
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    /// The root of a registry's API.
    pub(crate) fn endpoint(&self, registry: &str) -> Result<Url, ImageError> {
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
        let is_listed = self.insecure.iter().chain(&self.private).any(|listed| listed == registry);
        if let Some(allowed) = &*allowed
            && !is_listed
            && !allowed.iter().any(|listed| listed == registry)
        {
            let flag = format!("--allow-registry {registry}");
            return Err(not_allowed(registry, "it is not among the allowed ones", flag));
        }
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if self.insecure.iter().any(|listed| listed == registry) { "http" } else { "https" };
        let name = host.split(':').next().unwrap_or_default();
        if !is_listed && !name.contains('.') {
            return Err(self.local(registry, "it is a name of a local network"));
        }
        let url = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|error| not_allowed(registry, &error.to_string(), "another name".into()))?;
        self.check(&url, registry)?;
        Ok(url)
    }

    /// Whether a URL may be fetched for the sake of this registry, and with which reach.
    pub(crate) fn check(&self, url: &Url, registry: &str) -> Result<Reach, ImageError> {
        let refuse = |reason: &str| Err(self.local(registry, reason));
        let Some(host) = url.host_str() else { return refuse("it leads to no host") };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("it leads to a URL with a password");
        }
        let is_insecure = names(&self.insecure, url);
        match url.scheme() {
            "https" => {}
            "http" if is_insecure => return Ok(Reach::Anywhere),
            "http" if !walls::stands("https") => {}
            "http" => return refuse(&format!("it leads to plain http at {host}")),
            _ => return refuse("it leads to something that is not http"),
        }
        if is_insecure || names(&self.private, url) {
            return Ok(Reach::Anywhere);
        }
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        match literal {
            Ok(address) if !is_public(address) && walls::stands("public_addresses") => {
                refuse(&format!("{host} is not a public address"))
            }
            _ => Ok(Reach::Public),
        }
    }

    /// What to say when a name led to an address that is not public.
    pub(crate) fn local(&self, registry: &str, reason: &str) -> ImageError {
        let flag =
            format!("--insecure-registry {registry} (plain http) or --private-registry {registry} (https)");
        not_allowed(registry, reason, flag)
    }
}

fn lower(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

fn not_allowed(registry: &str, reason: &str, flag: String) -> ImageError {
    ImageError::NotAllowed { registry: registry.into(), reason: reason.into(), flag }
}

/// Whether a list has this URL's host and port; without a port it means the scheme's own.
fn names(list: &[String], url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    list.iter().any(|listed| match listed.rsplit_once(':') {
        Some((name, listed_port)) if !name.ends_with(':') => name == host && listed_port.parse() == Ok(port),
        _ => listed == host && url.port().is_none(),
    })
}

/// Resolves names and refuses those of which any address is not public. The connection then goes to
/// the addresses that were looked at, so that no second answer can be another one.
#[derive(Debug)]
pub(crate) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let stranger = found.iter().map(SocketAddr::ip).find(|address| !is_public(*address));
            if let Some(address) = stranger.filter(|_| walls::stands("public_names")) {
                return Err(Box::new(NotPublic { host: name.as_str().into(), address })
                    as Box<dyn Error + Send + Sync>);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[derive(Debug)]
pub(crate) struct NotPublic {
    pub(crate) host: String,
    pub(crate) address: IpAddr,
}

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has the address {}, which is not public", self.host, self.address)
    }
}

impl Error for NotPublic {}

/// Whether an address belongs to the open internet, and to nothing that hides behind it.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let local = address.is_private() || address.is_loopback() || address.is_link_local();
    let special = matches!(
        address.octets(),
        [0 | 224..=255, ..]
            | [100, 64..=127, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
    );
    !local && !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let tail = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b) {
        // An IPv4 address in another's clothes: mapped, translated, tunnelled.
        (0, 0) if (c, d, e, f) == (0, 0, 0, 0xffff) => tail(g, h),
        (0x64, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) => tail(g, h),
        (0x2002, _) => tail(b, c),
        (0x2001, 0 | 0xdb8) => false,
        // Only 2000::/3 has been given out.
        (0x2000..=0x3fff, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(insecure: &[&str], private: &[&str], allowed: Option<&[&str]>) -> Rules {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut config = Config::new("/nowhere");
        config.insecure_registries = own(insecure);
        config.private_registries = own(private);
        config.allowed_registries = allowed.map(own);
        Rules::new(&config)
    }

    #[test]
    fn only_the_open_internet_is_public() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_registry_is_public_and_https_unless_it_was_named() {
        let open = rules(&[], &[], None);
        assert_eq!(open.endpoint("docker.io").unwrap().as_str(), "https://registry-1.docker.io/v2/");
        assert_eq!(open.endpoint("ghcr.io").unwrap().as_str(), "https://ghcr.io/v2/");
        for refused in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "169.254.169.254",
            "0x7f.1",
            "registry:5000",
            "10.0.0.1",
        ] {
            let error = open.endpoint(refused).unwrap_err();
            let ImageError::NotAllowed { flag, .. } = &error else { panic!("{refused}: {error:?}") };
            assert!(flag.contains(&format!("--insecure-registry {refused}")), "{flag}");
        }
        let named = rules(&["localhost:5000", "10.0.0.1"], &["127.0.0.1:5443", "registry.corp"], None);
        for (name, url) in [
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("10.0.0.1", "http://10.0.0.1/v2/"),
            ("127.0.0.1:5443", "https://127.0.0.1:5443/v2/"),
            ("registry.corp", "https://registry.corp/v2/"),
        ] {
            let endpoint = named.endpoint(name).unwrap();
            assert_eq!(endpoint.as_str(), url);
            assert_eq!(named.check(&endpoint, name).unwrap(), Reach::Anywhere);
        }
        assert!(named.endpoint("localhost:5001").is_err());
        assert!(named.endpoint("localhost").is_err());
    }

    #[test]
    fn with_a_list_nothing_else_is_asked() {
        let rules = rules(&["localhost:5000"], &[], Some(&["ghcr.io"]));
        assert!(rules.endpoint("ghcr.io").is_ok() && rules.endpoint("localhost:5000").is_ok());
        let error = rules.endpoint("docker.io").unwrap_err();
        assert!(error.to_string().contains("--allow-registry docker.io"), "{error}");
    }

    #[test]
    fn redirects_and_realms_obey_the_same_rules() {
        let rules = rules(&["localhost:5000"], &[], None);
        let check = |url: &str| rules.check(&Url::parse(url).unwrap(), "r");
        assert_eq!(check("https://cdn.example.com/x").unwrap(), Reach::Public);
        assert_eq!(check("http://localhost:5000/x").unwrap(), Reach::Anywhere);
        for bad in [
            "http://cdn.example.com/x",
            "https://127.0.0.1/x",
            "https://[::1]/x",
            "https://2130706433/x",
            "http://localhost:5001/x",
            "https://[::ffff:169.254.169.254]/",
            "ftp://a.b/c",
            "file:///etc/passwd",
            "https://u:p@a.b/c",
            "https://0x7f.1/",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
