//! Server: KEDA's questions over gRPC, in clear text within the cluster.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, time::Duration};

use axum::body::Body;
use futures::{Stream, future::BoxFuture, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tonic::{
    Request, Response, Status,
    codegen::Service,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    answers,
    protocol::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, SERVICE,
        ScaledObjectRef,
    },
};
use crate::{
    serving::{self, ConnectionError},
    session_metrics::{
        counts::Counts,
        endpoint::{self, Place},
    },
};

/// Connections at one time: KEDA keeps one for each address, and has two or three pods.
const CONNECTIONS: usize = 32;
/// Streams of one connection at one time: one for each trigger of each `ScaledObject`.
const STREAMS: u32 = 20_000;
/// A connection on which nothing comes is asked whether it still stands.
const KEEP_ALIVE: Duration = Duration::from_mins(1);
/// The greeting of HTTP/2 takes a moment.
const GREETING: Duration = Duration::from_secs(10);
/// How soon KEDA is told of a service that has instances again.
const LOOK: Duration = Duration::from_secs(1);
/// Name of the port, in the Service and in its `EndpointSlice`.
const PORT_NAME: &str = "grpc";

/// It cannot be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot listen on {address} (--keda-scaler-port): {source}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the API server cannot be told of the address (EndpointSlice): {0}; install the chart with autoscaling.metrics=keda"
    )]
    Publish(#[from] kube::Error),
}

/// Serves for as long as it is polled; what fails is told and tried again.
pub async fn serve(client: kube::Client, counts: Counts, place: Place) {
    serving::keep_serving("KEDA is not answered", async || serve_once(&client, &counts, &place).await).await;
}

async fn serve_once(client: &kube::Client, counts: &Counts, place: &Place) -> Result<(), ServeError> {
    let address = place.listen();
    let listener =
        TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    endpoint::publish(client, place, PORT_NAME).await?;
    tracing::info!(address = %place.address, "answering KEDA ({SERVICE})");
    tokio::select! {
        () = accept(listener, counts.clone()) => {}
        () = endpoint::keep_published(client, place, PORT_NAME) => {}
    }
    Ok(())
}

/// Answers whoever connects.
pub async fn accept(listener: TcpListener, counts: Counts) {
    serving::accept("KEDA", listener, CONNECTIONS, |stream| connection(stream, Scaler(counts.clone()))).await;
}

async fn connection(stream: TcpStream, scaler: Scaler) -> Result<(), ConnectionError> {
    // Whoever says nothing at all must not hold a place.
    timeout(GREETING, stream.readable()).await??;
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(scaler))
        .await?;
    Ok(())
}

/// KEDA's `ExternalScaler`.
#[derive(Clone)]
pub struct Scaler(Counts);

impl NamedService for Scaler {
    const NAME: &'static str = SERVICE;
}

/// What HTTP/2 brings, and what goes back.
type HttpRequest = http::Request<hyper::body::Incoming>;
type HttpResponse = http::Response<tonic::body::Body>;
type Answer<T> = BoxFuture<'static, Result<Response<T>, Status>>;

impl Service<HttpRequest> for Scaler {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let counts = self.0.clone();
        let request = request.map(Body::new);
        Box::pin(async move {
            let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
            Ok(match method {
                Some("/IsActive") => Grpc::new(ProstCodec::default()).unary(IsActive(counts), request).await,
                Some("/StreamIsActive") => {
                    Grpc::new(ProstCodec::default()).server_streaming(StreamIsActive(counts), request).await
                }
                Some("/GetMetricSpec") => {
                    Grpc::new(ProstCodec::default()).unary(GetMetricSpec, request).await
                }
                Some("/GetMetrics") => {
                    Grpc::new(ProstCodec::default()).unary(GetMetrics(counts), request).await
                }
                // KEDA asks for what it knows that not all have, and does without.
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct IsActive(Counts);

impl UnaryService<ScaledObjectRef> for IsActive {
    type Response = IsActiveResponse;
    type Future = Answer<IsActiveResponse>;

    fn call(&mut self, request: Request<ScaledObjectRef>) -> Self::Future {
        let answer = answers::is_active(&self.0, request.get_ref());
        Box::pin(std::future::ready(answer.map(|result| Response::new(IsActiveResponse { result }))))
    }
}

struct GetMetricSpec;

impl UnaryService<ScaledObjectRef> for GetMetricSpec {
    type Response = GetMetricSpecResponse;
    type Future = Answer<GetMetricSpecResponse>;

    fn call(&mut self, request: Request<ScaledObjectRef>) -> Self::Future {
        Box::pin(std::future::ready(answers::metric_spec(request.get_ref()).map(Response::new)))
    }
}

struct GetMetrics(Counts);

impl UnaryService<GetMetricsRequest> for GetMetrics {
    type Response = GetMetricsResponse;
    type Future = Answer<GetMetricsResponse>;

    fn call(&mut self, request: Request<GetMetricsRequest>) -> Self::Future {
        Box::pin(std::future::ready(answers::metrics(&self.0, request.get_ref()).map(Response::new)))
    }
}

struct StreamIsActive(Counts);

type Activity = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

impl ServerStreamingService<ScaledObjectRef> for StreamIsActive {
    type Response = IsActiveResponse;
    type ResponseStream = Activity;
    type Future = Answer<Activity>;

    fn call(&mut self, request: Request<ScaledObjectRef>) -> Self::Future {
        let activity: Activity = Box::pin(activity(self.0.clone(), request.into_inner()));
        Box::pin(std::future::ready(Ok(Response::new(activity))))
    }
}

/// Whether there is any instance: at once, and whenever it changes. It ends with the service.
fn activity(
    counts: Counts,
    object: ScaledObjectRef,
) -> impl Stream<Item = Result<IsActiveResponse, Status>> + Send {
    stream::try_unfold(None, move |last: Option<bool>| {
        let (counts, object) = (counts.clone(), object.clone());
        async move {
            loop {
                let result = answers::is_active(&counts, &object)?;
                if last != Some(result) {
                    return Ok(Some((IsActiveResponse { result }, Some(result))));
                }
                sleep(LOOK).await;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use kube::{
        core::DeserializeGuard,
        runtime::{reflector, watcher::Event},
    };

    use super::*;
    use crate::{controller::fixtures, session_metrics::counts::tests::counts, watched::tests::watched};

    #[tokio::test(start_paused = true)]
    async fn a_service_that_sleeps_is_not_active_until_it_is_to_have_an_instance() {
        let (store, mut writer) = reflector::store();
        let mut scaled = |replicas| {
            let mut service = fixtures::service(fixtures::STDIO);
            service.spec.replicas = replicas;
            writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(service))));
        };
        scaled(0);
        let mut part = watched(None, Vec::new(), Vec::new());
        part.stores.services = store;
        let counts = Counts::new([part].into_iter().collect());
        let object = object("meteo");
        assert!(!answers::is_active(&counts, &object).unwrap());
        let mut told = Box::pin(activity(counts.clone(), object.clone()));
        assert!(!told.next().await.unwrap().unwrap().result);
        assert!(timeout(LOOK * 60, told.next()).await.is_err(), "it still sleeps");
        scaled(1);
        assert!(told.next().await.unwrap().unwrap().result);
        assert!(answers::is_active(&counts, &object).unwrap());
        scaled(0);
        assert!(!told.next().await.unwrap().unwrap().result);
    }

    fn object(namespace: &str) -> ScaledObjectRef {
        ScaledObjectRef {
            name: "any".to_owned(),
            namespace: namespace.to_owned(),
            scaler_metadata: [("service", "weather"), ("metric", "mcp_sessions"), ("targetPerReplica", "1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn activity_is_told_at_once_and_then_only_when_it_changes() {
        let mut told = Box::pin(activity(counts(&[]), object("meteo")));
        assert!(told.next().await.unwrap().unwrap().result);
        assert!(timeout(LOOK * 60, told.next()).await.is_err(), "nothing has changed");
        let mut told = Box::pin(activity(counts(&[]), object("other")));
        assert_eq!(told.next().await.unwrap().unwrap_err().code(), tonic::Code::NotFound);
        assert!(told.next().await.is_none());
    }
}
