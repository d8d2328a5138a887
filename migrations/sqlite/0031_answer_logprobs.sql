-- Log-probabilities of answers whose requests asked for them.
alter table answers add column logprobs text;
alter table attempt_answers add column logprobs text;
