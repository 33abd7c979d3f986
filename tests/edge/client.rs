//! A client that speaks HTTP/2 and takes of its answers what a test says.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Error, Reason};
use support::Value;
use tokio::net::TcpStream;

/// More than that of one stream: who takes nothing of one answer can take others.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// One connection, with prior knowledge.
pub(crate) struct Client {
    send: SendRequest<Bytes>,
    address: SocketAddr,
    /// How the connection ended.
    pub ended: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        let (send, connection) = h2::client::Builder::new()
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(stream)
            .await
            .expect("speak HTTP/2");
        let ended = tokio::spawn(connection);
        Self { send, address, ended }
    }

    /// Sends a request; the answer is taken when somebody waits for it.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<ResponseFuture, Error> {
        self.ask_with(method, path, body, &[]).await
    }

    pub(crate) async fn ask_with(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<ResponseFuture, Error> {
        let uri = format!("http://{}{path}", self.address);
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut ready = self.send.clone().ready().await?;
        let (answer, mut stream) =
            ready.send_request(request.body(()).expect("a request"), body.is_none())?;
        if let Some(body) = body {
            stream.send_data(body.to_string().into(), true)?;
        }
        Ok(answer)
    }

    /// Asks, and takes the whole answer.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, String), Error> {
        take(self.ask(method, path, body).await?).await
    }
}

pub(crate) async fn take(answer: ResponseFuture) -> Result<(u16, String), Error> {
    let answer = answer.await?;
    let (status, mut body, mut text) = (answer.status().as_u16(), answer.into_body(), Vec::new());
    while let Some(data) = body.data().await {
        let data = data?;
        text.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// Why the server has ended a stream.
pub(crate) fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> Option<Reason> {
    result.expect_err("an error").reason()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
