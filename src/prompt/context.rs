//! Prepares a request's context before it is sent to a model (`context: lossless`, `prune`).

use super::{
    clean::clean,
    estimate::estimate_tokens,
    prune::{
        Similarity,
        message::{needs_whole_text, prune_message},
    },
};
use crate::job::{ContextMode, ContextSavings, Message, Role};

/// Version of the preparation, part of the cache key; raise it whenever the same request would be
/// sent differently.
pub const CONTEXT_RULES: u8 = 2;

/// A prepared conversation and what was removed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Messages to send, as many as given, in order.
    pub messages: Vec<Message>,
    /// Estimated tokens saved.
    pub saved: ContextSavings,
}

/// Prepares a conversation. Only user turns change, and instructions in any other turn may forbid it.
///
/// With `prune`, the context that the question does not need is then removed from the last user turn;
/// an embedder, if given, improves the choice.
pub fn prepare(
    messages: &[Message],
    mode: ContextMode,
    similarity: Option<&dyn Similarity>,
) -> Prepared {
    let mut prepared = Prepared {
        messages: messages.to_vec(),
        saved: ContextSavings::default(),
    };
    if mode == ContextMode::Keep {
        return prepared;
    }
    for (at, message) in messages.iter().enumerate() {
        if message.role != Role::User {
            continue;
        }
        let elsewhere = instructions(messages, at);
        let cleaned = clean(&message.content, &elsewhere).text;
        let saved = estimate_tokens(&message.content).saturating_sub(estimate_tokens(&cleaned));
        if saved > 0 {
            prepared.saved.cleaned_tokens += u32::try_from(saved).unwrap_or(u32::MAX);
            prepared.messages[at].content = cleaned.into_owned();
        }
    }
    if mode == ContextMode::Prune {
        prune_last(&mut prepared, similarity);
    }
    prepared
}

/// Prunes the last user turn unless another turn forbids it.
fn prune_last(prepared: &mut Prepared, similarity: Option<&dyn Similarity>) {
    let last = prepared
        .messages
        .iter()
        .rposition(|message| message.role == Role::User);
    let Some(at) = last else {
        return;
    };
    let elsewhere = instructions(&prepared.messages, at);
    let content = &prepared.messages[at].content;
    if needs_whole_text(&elsewhere) {
        return;
    }
    if let Some(pruned) = prune_message(content, similarity) {
        let saved = estimate_tokens(content).saturating_sub(estimate_tokens(&pruned));
        prepared.saved.pruned_tokens = u32::try_from(saved).unwrap_or(u32::MAX);
        prepared.messages[at].content = pruned;
    }
}

/// Texts of system and later user turns, which may refer to the form of an earlier turn.
fn instructions(messages: &[Message], except: usize) -> String {
    let mut text = String::new();
    for (at, message) in messages.iter().enumerate() {
        let may_instruct = match message.role {
            Role::System => true,
            Role::User => at > except,
            Role::Assistant => false,
        };
        if may_instruct {
            text.push_str(&message.content);
            text.push_str("\n\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, content: &str) -> Message {
        Message {
            role,
            content: content.to_owned(),
        }
    }

    const PRETTY: &str = "What is a?\n\n{\n    \"a\": 1.0,\n    \"b\": [\n        2\n    ]\n}";

    #[test]
    fn only_user_turns_are_cleaned() {
        let messages = [turn(Role::System, PRETTY), turn(Role::User, PRETTY)];
        let prepared = prepare(&messages, ContextMode::Lossless, None);
        assert_eq!(prepared.messages[0], messages[0]);
        assert_eq!(
            prepared.messages[1].content,
            "What is a?\n\n{\"a\":1.0,\"b\":[2]}"
        );
        assert!(prepared.saved.cleaned_tokens > 4, "{:?}", prepared.saved);
        let kept = prepare(&messages, ContextMode::Keep, None);
        assert_eq!(
            (kept.messages.as_slice(), kept.saved),
            (&messages[..], ContextSavings::default())
        );
    }

    #[test]
    fn system_prompt_and_later_turns_can_forbid_cleaning() {
        let user = turn(Role::User, PRETTY);
        for messages in [
            vec![turn(Role::System, "Return the JSON as is."), user.clone()],
            vec![
                user.clone(),
                turn(Role::Assistant, "1"),
                turn(Role::User, "Now quote it."),
            ],
        ] {
            assert_eq!(
                prepare(&messages, ContextMode::Lossless, None).messages,
                messages
            );
        }
    }
}
