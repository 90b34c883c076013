#!/bin/sh
# Starts a command in every pod of an Indexed Job as one rank of an MPI job, by MPICH's launcher, without ssh: the first pod runs mpiexec,
# which says how the proxy of each host is to be started; every pod starts its own. All end with mpiexec's exit code: a pod that ended
# well would not be started again with those that did not.
#
#   RANKS=4 HOSTS=coppice-0.coppice,coppice-1.coppice,... SHARED=/work start-ranks.sh coppice distill ...
#
# JOB_COMPLETION_INDEX is the pod's number, SHARED a folder that all pods see, JOB_ID names the job.
set -eu
: "${JOB_COMPLETION_INDEX:?is set in the pods of an Indexed Job}" "${RANKS:?}" "${HOSTS:?}" "${SHARED:?}" "${JOB_ID:?}"
commands=$SHARED/.ranks-$JOB_ID
exit_code=$commands.exit

if [ "$JOB_COMPLETION_INDEX" = 0 ]; then
  rm -f "$commands" "$exit_code" # of an earlier attempt
  output=$(mktemp)
  # the short name of a pod, which Hydra would announce, is not known to the others
  mpiexec.hydra -localhost "${HOSTS%%,*}" -launcher manual -hosts "$HOSTS" -n "$RANKS" -ppn 1 "$@" >"$output" 2>&1 &
  mpiexec=$!
  until grep -q HYDRA_LAUNCH_END "$output"; do
    kill -0 "$mpiexec" || { cat "$output" >&2; exit 1; }
    sleep 1
  done
  sed -n 's/^HYDRA_LAUNCH: //p' "$output" >"$commands.partial"
  mv "$commands.partial" "$commands"
  tail --pid="$mpiexec" -n +$((RANKS + 2)) -f "$output" &
  tail=$!
fi

version() { stat -c %i:%Y "$commands" 2>/dev/null || true; }
start_proxy() {
  seen=$(version)
  sh -c "$(sed -n "$((JOB_COMPLETION_INDEX + 1))p" "$commands")" || true
}
until [ -s "$commands" ]; do
  # a pod that is started again after all is done
  if [ "$(cat "$exit_code" 2>/dev/null)" = 0 ]; then exit 0; fi
  sleep 1
done
start_proxy

if [ "$JOB_COMPLETION_INDEX" = 0 ]; then
  code=0
  wait "$mpiexec" || code=$?
  wait "$tail"
  rm -f "$commands" "$output"
  echo "$code" >"$exit_code"
  exit "$code"
fi
for _ in $(seq 60); do
  if [ -s "$exit_code" ]; then exit "$(cat "$exit_code")"; fi
  # those commands may have been of an earlier attempt whose first pod was lost
  now=$(version) # none where the first pod has just removed them
  if [ -n "$now" ] && [ "$now" != "$seen" ]; then start_proxy; fi
  sleep 1
done
echo "the first pod has not said how the job ended" >&2
exit 1
