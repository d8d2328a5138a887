-- What the context's clean-up and pruning left out of prompts; estimated tokens of the last attempt.
alter table jobs add column cleaned_tokens integer;
alter table jobs add column pruned_tokens integer;

create view token_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0) as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0) as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0) as reused_tokens,
       coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0) as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0) as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0) as pruned_tokens
  from jobs
 where state = 'succeeded'
 group by 1, 2;
