//! A node's end of a discovery stream.

use std::time::Duration;

use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::convert::Entry;
use mesh_api::workload::Address;
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// How long a push may take before its test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Subscriber {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

pub fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE_URL.to_owned(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn subscribe_policies() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: POLICY_TYPE_URL.to_owned(),
        ..subscribe(&["*"])
    }
}

impl Subscriber {
    pub async fn open(node: &Channel, first: DeltaDiscoveryRequest) -> Self {
        let (requests, receiver) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(node.clone());
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    /// The next response, acknowledged.
    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message());
        let message = message.await.expect("something within the patience");
        let response = message?.expect("the stream goes on");
        assert!(!response.nonce.is_empty());
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(response)
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

pub fn entry(response: &DeltaDiscoveryResponse, name: &str) -> Entry {
    let resource = response.resources.iter().find(|r| r.name == name).unwrap();
    let any = resource.resource.as_ref().unwrap();
    assert_eq!(any.type_url, ADDRESS_TYPE_URL);
    let address: Address = prost::Message::decode(any.value.as_slice()).unwrap();
    Entry::from_wire(&address, &"other".parse().unwrap()).unwrap()
}
