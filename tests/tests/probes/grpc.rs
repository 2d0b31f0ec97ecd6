//! A gRPC server's health service, by the same HTTP/2 library that carries tunnels.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use mesh_lab::Pod;
use tokio::net::TcpStream;

/// A message of gRPC: not compressed, two bytes long; `HealthCheckResponse` with status SERVING.
pub(crate) const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
/// An empty `HealthCheckRequest`.
pub(crate) const REQUEST: [u8; 5] = [0; 5];
pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Serves `grpc.health.v1.Health/Check` in a pod, for as long as the test runs.
pub(crate) fn serve(pod: &Pod, port: u16) {
    let at = SocketAddr::new("::".parse().unwrap(), port);
    let listener = pod.netns.run(|| TcpListener::bind(at)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // One that ends in the middle is the test's to see.
            let _: Result<(), Box<dyn std::error::Error>> =
                stream.map_err(Into::into).and_then(answer);
        }
    });
}

/// Answers every request on a connection until it ends.
fn answer(stream: std::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut connection = h2::server::handshake(TcpStream::from_std(stream)?).await?;
        while let Some(request) = connection.accept().await {
            let (request, respond) = request?;
            // Beside the connection, which has to go on for the request's body to arrive.
            tokio::spawn(reply(request, respond));
        }
        Ok(())
    })
}

async fn reply(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let status = match request.uri().path() {
        CHECK => "0",
        _ => "12",
    };
    let mut asked = request.into_body();
    while let Some(part) = asked.data().await {
        asked.flow_control().release_capacity(part?.len())?;
    }
    let mut response = Response::new(());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    let mut body = respond.send_response(response, false)?;
    body.send_data(Bytes::from_static(&SERVING), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    body.send_trailers(trailers)
}
