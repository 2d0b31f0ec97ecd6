//! Much data, both ways at once, byte for byte.

use std::hash::Hasher;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::harness::{Mesh, TestPod, within};

const TOTAL: usize = 512 << 20;
const BLOCK: usize = 1 << 20;

/// A block that says where it belongs.
fn block(number: usize, salt: u8) -> Vec<u8> {
    let mut block = vec![salt; BLOCK];
    for (i, word) in block.chunks_exact_mut(8).enumerate() {
        let value = (number * BLOCK + i * 8) as u64;
        word.copy_from_slice(&(value ^ u64::from(salt)).to_le_bytes());
    }
    block
}

async fn send(mut to: OwnedWriteHalf, salt: u8) -> u64 {
    let mut hash = std::hash::DefaultHasher::new();
    for number in 0..TOTAL / BLOCK {
        let block = block(number, salt);
        hash.write(&block);
        to.write_all(&block).await.unwrap();
    }
    to.shutdown().await.unwrap();
    hash.finish()
}

async fn receive(mut from: OwnedReadHalf) -> u64 {
    let mut hash = std::hash::DefaultHasher::new();
    let mut block = vec![0; BLOCK];
    for _ in 0..TOTAL / BLOCK {
        from.read_exact(&mut block).await.unwrap();
        hash.write(&block);
    }
    assert_eq!(from.read(&mut block).await.unwrap(), 0);
    hash.finish()
}

#[tokio::test]
async fn half_a_gigabyte_each_way_at_once_arrives_as_it_was_sent() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let client = a.dial(at).await;
    let (server, _) = within("accept", listener.accept()).await.unwrap();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let all = async {
        tokio::join!(
            tokio::spawn(send(client_write, 1)),
            tokio::spawn(receive(server_read)),
            tokio::spawn(send(server_write, 2)),
            tokio::spawn(receive(client_read)),
        )
    };
    let started = std::time::Instant::now();
    let transferred = tokio::time::timeout(std::time::Duration::from_secs(120), all).await;
    let (sent, received, answered, returned) = transferred.unwrap();
    println!("1 GiB in {:?}", started.elapsed());
    assert_eq!(sent.unwrap(), received.unwrap());
    assert_eq!(answered.unwrap(), returned.unwrap());
    a.counted("nodemesh_bytes_total", "outbound_sent", TOTAL as u64)
        .await;
    b.counted("nodemesh_bytes_total", "inbound_sent", TOTAL as u64)
        .await;
}
