//! A client of HTTP/2 that keeps one connection for as long as the server does, as proxies and gRPC's libraries do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use h2::client::SendRequest;
use h2::{Error, Reason};
use tokio::net::TcpStream;
use tokio::time::timeout;

type Send = SendRequest<axum::body::Bytes>;

/// Longer than anything takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a request.
enum Asked {
    Answered,
    /// The server has said that it goes away before it took it: it may be sent to the next.
    NotTaken,
}

pub(crate) fn ask_again_and_again(
    address: SocketAddr,
    run: &'static str,
    enough: &AtomicBool,
    answers: &AtomicUsize,
) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut connections = 0;
        while !enough.load(Ordering::Relaxed) {
            let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
            let spoken = h2::client::handshake(stream).await.map_err(|error| format!("speak: {error}"))?;
            let (mut send, connection) = spoken;
            let connection = tokio::spawn(connection);
            connections += 1;
            while !enough.load(Ordering::Relaxed) {
                let asked =
                    timeout(PATIENCE, ask(&mut send, run)).await.map_err(|_| "no answer".to_owned())?;
                match asked? {
                    Asked::Answered => answers.fetch_add(1, Ordering::Relaxed),
                    Asked::NotTaken => break,
                };
            }
            connection.abort();
        }
        Ok(connections)
    })
}

async fn ask(send: &mut Send, run: &'static str) -> Result<Asked, String> {
    let request = axum::http::Request::builder().method("POST").uri("http://localhost/runs").body(());
    let Ok(mut ready) = send.clone().ready().await else { return Ok(Asked::NotTaken) };
    let Ok((answer, mut body)) = ready.send_request(request.expect("a request"), false) else {
        return Ok(Asked::NotTaken);
    };
    let sent = body.send_data(run.into(), true);
    match sent.map(|()| answer) {
        Ok(answer) => match answer.await {
            Ok(answer) => read(answer).await.map(|()| Asked::Answered),
            Err(error) => not_taken(&error),
        },
        Err(error) => not_taken(&error),
    }
}

/// By the standard (RFC 9113, 6.8 and 8.7) these two mean that nothing was done.
fn not_taken(error: &Error) -> Result<Asked, String> {
    let gone = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    let refused = error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    if gone || refused { Ok(Asked::NotTaken) } else { Err(format!("HTTP/2: {error}")) }
}

async fn read(answer: axum::http::Response<h2::RecvStream>) -> Result<(), String> {
    let (status, mut body, mut text) = (answer.status(), answer.into_body(), Vec::new());
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("HTTP/2, within an answer: {error}"))?;
        text.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).map_err(|error| error.to_string())?;
    }
    let text = String::from_utf8_lossy(&text);
    if status == 200 && text.contains(r#""stdout":"hi\n""#) {
        Ok(())
    } else {
        Err(format!("{status}: {text}"))
    }
}
