-- Log-probabilities of answers whose requests asked for them.
alter table answers add column logprobs text;
comment on column answers.logprobs is 'Each generated token''s log-probability, where the request asked for it: JSON as in OpenAI''s choices[].logprobs.content.';
alter table attempt_answers add column logprobs text;
comment on column attempt_answers.logprobs is 'As in answers.';
