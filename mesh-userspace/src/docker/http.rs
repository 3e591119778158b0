//! One HTTP request over a stream.

use std::io;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.status.is_success()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// Sends a JSON body, empty for none, and reads an answer of at most `limit` bytes.
pub async fn call<S>(
    stream: S,
    method: &str,
    path: &str,
    body: Vec<u8>,
    limit: usize,
) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = open(stream, method, path, body).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), limit).collect().await.map_err(io::Error::other)?;
    Ok(Answer { status, body: body.to_bytes() })
}

/// As [`call`], for an answer that goes on and on.
pub async fn open<S>(
    stream: S,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> io::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends with the answer.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "mesh")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(io::Error::other)
}
