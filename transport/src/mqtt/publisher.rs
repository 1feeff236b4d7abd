//! The sending end of a connection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Filter, Publication, PublishError, ReasonCode};

/// To send with; cheap to clone. What is queued goes out in order.
#[derive(Debug, Clone)]
pub struct Publisher {}

/// The broker's answer to a publish: PUBACK's reason code. Dropping it changes nothing.
#[derive(Debug)]
pub struct PublishReply(oneshot::Receiver<ReasonCode>);

/// The broker's answer to a subscribe: one reason code per filter, in order. Dropping it changes nothing.
#[derive(Debug)]
pub struct SubscribeReply(oneshot::Receiver<Vec<ReasonCode>>);

/// The broker's answer to an unsubscribe: one reason code per filter, in order. Dropping it changes nothing.
#[derive(Debug)]
pub struct UnsubscribeReply(oneshot::Receiver<Vec<ReasonCode>>);

impl Publisher {
    /// Queues a publish, without waiting for anything.
    ///
    /// # Errors
    /// [`PublishError::Full`], [`TooLarge`](PublishError::TooLarge), [`Invalid`](PublishError::Invalid) or
    /// [`Closed`](PublishError::Closed); nothing was sent then.
    pub fn try_publish(&self, publication: Publication) -> Result<(), PublishError> {
        let _ = publication;
        todo!()
    }

    /// Queues a publish at QoS 1, without waiting; the reply is the broker's PUBACK.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn publish_start(&self, publication: Publication) -> Result<PublishReply, PublishError> {
        let _ = publication;
        todo!()
    }

    /// Publishes at QoS 1 and waits for room and for the PUBACK.
    ///
    /// # Errors
    /// Any [`PublishError`] but `Full`; [`Refused`](PublishError::Refused) has the broker's reason.
    pub async fn publish_confirmed(
        &self,
        publication: Publication,
        timeout: Duration,
    ) -> Result<(), PublishError> {
        let _ = (publication, timeout);
        todo!()
    }

    /// Queues a subscribe, without waiting; the reply is the broker's SUBACK.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn subscribe_start(&self, filters: Vec<Filter>) -> Result<SubscribeReply, PublishError> {
        let _ = filters;
        todo!()
    }

    /// Subscribes and waits for room and for the SUBACK: one reason code per filter, in order; each may be a
    /// refusal (see [`ReasonCode::is_error`]).
    ///
    /// # Errors
    /// Any [`PublishError`] but `Full` and `Refused`.
    pub async fn subscribe(
        &self,
        filters: Vec<Filter>,
        timeout: Duration,
    ) -> Result<Vec<ReasonCode>, PublishError> {
        let _ = (filters, timeout);
        todo!()
    }

    /// Queues an unsubscribe, without waiting.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn unsubscribe(&self, filters: Vec<String>) -> Result<UnsubscribeReply, PublishError> {
        let _ = filters;
        todo!()
    }

    /// Sends all that was queued before, then DISCONNECT, and waits until the broker has closed the connection (at
    /// most one second after DISCONNECT went out). Events are still to be read meanwhile, or dropped.
    ///
    /// # Errors
    /// [`PublishError::Timeout`] when it was not done by the deadline; the connection is cut then.
    /// [`PublishError::Closed`] when it was over before DISCONNECT went out.
    pub async fn disconnect(&self, deadline: Duration) -> Result<(), PublishError> {
        let _ = deadline;
        todo!()
    }

    /// Publications that may be queued now before [`PublishError::Full`].
    pub fn capacity(&self) -> usize {
        todo!()
    }

    /// Waits until there is room, or the connection is closed. Bounded by the connection's own keep alive.
    pub async fn ready(&self) {
        todo!()
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        todo!()
    }

    /// Bytes that a PUBLISH of this takes on the wire, to compare with the broker's Maximum Packet Size.
    pub fn packet_size(publication: &Publication) -> usize {
        let _ = publication;
        todo!()
    }
}

impl Future for PublishReply {
    type Output = Result<ReasonCode, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| PublishError::Closed)
    }
}

impl Future for SubscribeReply {
    type Output = Result<Vec<ReasonCode>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| PublishError::Closed)
    }
}

impl Future for UnsubscribeReply {
    type Output = Result<Vec<ReasonCode>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| PublishError::Closed)
    }
}
