//! A gRPC server's health service, by the same HTTP/2 library that carries tunnels.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
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
            let (request, mut respond) = request?;
            let known = request.uri().path() == CHECK;
            let mut asked = request.into_body();
            while let Some(part) = asked.data().await {
                asked.flow_control().release_capacity(part?.len())?;
            }
            let response = Response::builder().header("content-type", "application/grpc");
            let mut body = respond.send_response(response.body(())?, false)?;
            body.send_data(Bytes::from_static(&SERVING), false)?;
            let status = if known { "0" } else { "12" };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(status));
            body.send_trailers(trailers)?;
        }
        Ok(())
    })
}
