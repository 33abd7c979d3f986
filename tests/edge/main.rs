//! The edge of the service, where strangers' connections arrive: TLS, HTTP/2, and proxies that speak for others.

mod certificates;
mod client;
mod http2;
mod proxies;
mod tls;
