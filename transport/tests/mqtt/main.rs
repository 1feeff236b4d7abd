//! The connection against a scripted broker that sends and expects raw packets: each trap of MQTT clients, and what no
//! well-behaved broker does.

mod connecting;
mod ending;
mod fake_broker;
mod flow;
mod receiving;
