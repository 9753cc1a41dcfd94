//! A message as it comes in, any bytes: what it asks, or what is said to it without looking anything up. A message that
//! is no question gets no answer, so that two servers never answer each other.

use super::counts::{Kind, Outcome};
use super::reply::Reply;
use hickory_proto::op::{Header, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// What an answer by UDP may have where the client says nothing (RFC 1035 section 4.2.1), and what it has at most: no
/// path fragments it (the DNS flag day of 2020, and RFC 9715).
const UDP_BYTES: u16 = 512;
pub const UDP_BYTES_MAX: u16 = 1232;

/// How a message came, and how large its answer may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// One good question.
#[derive(Clone, Debug)]
pub struct Query {
    pub question: Question,
    /// The answer so far: the question, and what of its header belongs in an answer.
    reply: Message,
    answer_bytes_max: u16,
}

pub enum Read {
    Nothing,
    Said(Reply),
    Asked(Query),
}

impl Read {
    #[must_use]
    pub fn new(bytes: &[u8], transport: Transport) -> Self {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Self::Nothing };
        if header.message_type == MessageType::Response {
            return Self::Nothing;
        }
        let said = |code, outcome| {
            let mut message = Message::response(header.id, header.op_code);
            message.metadata.recursion_desired = header.recursion_desired;
            message.metadata.response_code = code;
            Self::Said(Reply::new(message, UDP_BYTES, Kind::Other, outcome))
        };
        if header.op_code != OpCode::Query {
            return said(ResponseCode::NotImp, Outcome::Unsupported);
        }
        let Ok(mut asked) = Message::from_vec(bytes) else { return said(ResponseCode::FormErr, Outcome::Malformed) };
        let (Some(question), 0) = (asked.queries.pop(), asked.queries.len()) else {
            return said(ResponseCode::FormErr, Outcome::Malformed);
        };
        Self::judged(Query::new(&asked, question, transport), &asked)
    }

    /// What is answered alike whatever there is.
    fn judged(query: Query, asked: &Message) -> Self {
        let question = &query.question;
        let is_transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
        if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Self::Said(query.said(ResponseCode::BADVERS, Outcome::Unsupported));
        }
        if question.query_class() != DNSClass::IN || is_transfer {
            return Self::Said(query.said(ResponseCode::Refused, Outcome::Refused));
        }
        Self::Asked(query)
    }
}

impl Query {
    fn new(asked: &Message, question: Question, transport: Transport) -> Self {
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.checking_disabled = asked.checking_disabled;
        reply.add_query(question.clone());
        if asked.edns.is_some() {
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX).set_version(0);
            reply.set_edns(edns);
        }
        let by_udp = asked.edns.as_ref().map_or(UDP_BYTES, |edns| edns.max_payload().clamp(UDP_BYTES, UDP_BYTES_MAX));
        let answer_bytes_max = match transport {
            Transport::Udp => by_udp,
            Transport::Tcp => u16::MAX,
        };
        Self { question, reply, answer_bytes_max }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(self.question.query_type())
    }

    /// An answer to be filled in.
    #[must_use]
    pub fn reply(&self) -> Message {
        self.reply.clone()
    }

    #[must_use]
    pub fn answered(&self, message: Message, outcome: Outcome) -> Reply {
        Reply::new(message, self.answer_bytes_max, self.kind(), outcome)
    }

    #[must_use]
    pub fn said(&self, code: ResponseCode, outcome: Outcome) -> Reply {
        let mut message = self.reply();
        message.metadata.response_code = code;
        self.answered(message, outcome)
    }

    /// Nothing but that the answer is to be had by TCP.
    #[must_use]
    pub fn truncated(&self, outcome: Outcome) -> Reply {
        let mut message = self.reply();
        message.metadata.truncation = true;
        self.answered(message, outcome)
    }

    /// Whether an answer of somebody else's has a size that this client takes.
    #[must_use]
    pub fn takes(&self, bytes: usize) -> bool {
        bytes <= usize::from(self.answer_bytes_max)
    }
}
