-- A pair's probability is that of going to small times that of being drawn; both are needed to weigh it.
create or replace view shadow_pairs as
select j.id as job_id, s.shadow_id, j.tenant, j.scorer, j.score, s.propensity, l.finished_at,
       btrim(a.text, E' \t\r\n') = btrim(b.text, E' \t\r\n') as agrees,
       l.prompt_tokens, l.completion_tokens,
       extract(epoch from l.finished_at - l.started_at)::float8 as seconds,
       coalesce(j.propensity, 1.0) as decision_propensity
  from shadows s
  join jobs j on j.id = s.job_id
  join jobs l on l.id = s.shadow_id
  join answers a on a.job_id = s.job_id
  join answers b on b.job_id = s.shadow_id
 where j.state = 'succeeded' and l.state = 'succeeded';
comment on column shadow_pairs.decision_propensity is 'Probability with which the job went to small; times propensity, that of the pair.';
