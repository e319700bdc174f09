"""Lightning's loop over the batches of an epoch, less what takes as long as a step of a small network does."""

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop


class BatchLoop(_TrainingEpochLoop):
    """Does most steps of one process on a CPU by itself; all others are Lightning's.

    Between two batches, Lightning looks through some thirty hooks, profiles and metrics, of which a step has none:
    0.9 ms, where a step of LeNet takes 4. Such a step is done here, and leaves the same progress in checkpoints: it may
    be the last one before an interruption or the first one after it. Of callbacks, it calls those around a batch.
    """

    def advance(self, data_fetcher: Any) -> None:
        """Train on the next batch."""
        self._is_plain = self._is_plain_next()
        if self._is_plain:
            self._train_plainly(data_fetcher)
        else:
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate after the last batch, or where the training is to end."""
        if self._is_plain and not self.trainer.should_stop:
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)

    def _is_plain_next(self) -> bool:
        """Whether the next step is neither the first nor the last of the epoch."""
        trainer, num_done = self.trainer, self.batch_progress.current.ready
        return (
            not self.restarting
            and 0 < num_done < trainer.num_training_batches - 1
            and trainer.world_size == 1
            and trainer.strategy.root_device.type == "cpu"
        )

    def _train_plainly(self, data_fetcher: Any) -> None:
        trainer, progress = self.trainer, self.batch_progress
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        around = trainer, trainer.lightning_module
        for callback in trainer.callbacks:
            callback.on_train_batch_start(*around, batch, self.batch_idx)
        progress.increment_started()
        loss = self._step(batch)
        progress.increment_processed()
        self._change_rates()
        for callback in trainer.callbacks:
            callback.on_train_batch_end(*around, {"loss": loss}, batch, self.batch_idx)
        progress.increment_completed()

    def _step(self, batch: Any) -> Any:
        trainer, done = self.trainer, self.automatic_optimization.optim_progress.optimizer
        (optimizer,) = trainer.optimizers
        # Lightning does so after the forward pass, by when the gradients have left the cache.
        done.zero_grad.increment_ready()
        done.zero_grad.increment_started()
        optimizer.zero_grad()
        done.zero_grad.increment_completed()
        with trainer.precision_plugin.train_step_context():
            loss = trainer.lightning_module.training_step(batch, self.batch_idx)
        loss.backward()
        done.step.increment_ready()
        optimizer.step()
        done.step.increment_completed()
        return loss.detach()

    def _change_rates(self) -> None:
        """After each step, where the schedule is one of steps; what follows a metric changes after validation."""
        for schedule in self.trainer.lr_scheduler_configs:
            if not schedule.reduce_on_plateau:
                self.scheduler_progress.increment_ready()
                schedule.scheduler.step()
                self.scheduler_progress.increment_completed()


def use_batch_loop(trainer: Trainer) -> None:
    """Put the loop in the place of Lightning's."""
    theirs = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = BatchLoop(trainer, theirs.min_steps, theirs.max_steps)
